"""Rules and comparisons: from data to findings. No torch."""
