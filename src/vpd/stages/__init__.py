"""What each workflow stage does with settings and folders; both orchestrators reach them through the CLI."""
