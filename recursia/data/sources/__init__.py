"""Kinds of document sources, one a module; `recursia.data.named` finds them by their suffixes."""
