"""Pipelines whose rows have none: chunks that are computed anywhere, and walks over them in order."""
