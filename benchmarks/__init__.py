"""Measurements, each a ratio between things run in turn. Run one as `python -m benchmarks.NAME`."""
