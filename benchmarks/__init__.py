"""Measurements, each of things run in turn: `python -m benchmarks` for speed; the others as
`python -m benchmarks.NAME`."""
