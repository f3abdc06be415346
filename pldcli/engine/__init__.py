"""The one engine: runtime, precision, objectives, trainer, validation."""
