"""Commands as functions that are read top to bottom."""
