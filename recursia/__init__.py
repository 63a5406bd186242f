"""Pretraining of language models whose depth is made by using the same weights again."""
