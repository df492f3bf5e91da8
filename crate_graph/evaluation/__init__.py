"""Measuring a model: exact over a split, each sample once."""
