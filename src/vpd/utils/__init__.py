"""Files, errors, digests, progress and processes: nothing here knows what the project is about."""
