"""From raw text to batches: corpus, tokenizer, shards, masking, loader."""
