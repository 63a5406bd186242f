"""Embeddings: from token ids to states and back, one file each, all on `embedding.Embedding`."""
