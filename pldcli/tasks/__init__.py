"""What fine-tuning knows of tasks: where their files are, what their columns mean, how they are scored."""
