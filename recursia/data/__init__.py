"""Data: documents from files, tokenizers, packed shards, and batches as functions of the step."""
