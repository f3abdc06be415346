"""What a run leaves on disk: its directory, checkpoints and metrics, and models that are read from there."""
