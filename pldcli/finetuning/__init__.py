"""Fine-tune a model on tasks."""
