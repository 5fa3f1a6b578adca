"""Bytes to a View, one module a format. Nothing is unpickled, imported or executed; no torch."""
