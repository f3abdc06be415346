"""The one engine: runtime, precision, optimizers, objectives, trainer, checkpoints, metrics."""
