"""Kinds of document sources, one a module; `recursia.data.source` finds them by their suffixes."""
