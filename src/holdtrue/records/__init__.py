"""Data only: what a checkpoint says of itself. Nothing here imports torch."""
