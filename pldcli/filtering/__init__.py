"""What of a corpus is worth training on: quality, near duplicates, lines that repeat, overlap with what a model is scored on."""
