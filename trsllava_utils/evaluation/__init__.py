"""Notebook 04: ranks go in, recall with intervals and tests comes out."""
