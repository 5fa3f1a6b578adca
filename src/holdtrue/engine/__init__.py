"""Bytes to disk and back: layout, parallel writing, verifying reading. No torch."""
