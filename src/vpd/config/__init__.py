"""The settings: schema of params.yaml, its resolution to one spec per experiment, and the paper's numbers."""
