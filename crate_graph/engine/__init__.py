"""Engines: how gradients are made and applied on one process or on many. One protocol, two adapters."""
