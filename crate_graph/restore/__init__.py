"""Restoration of picture files with a trained model: read, observe, restore, write, compare."""
