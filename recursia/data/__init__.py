"""Data: documents from files, tokenizers, packed shards, and batches by training step."""
