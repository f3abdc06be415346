"""Text as people have it, read as documents: files of many kinds, their encodings, a sample for a tokenizer."""
