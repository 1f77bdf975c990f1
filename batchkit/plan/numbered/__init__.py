"""Pipelines whose rows have numbers: nodes that read any row, or any batch, by its position."""
