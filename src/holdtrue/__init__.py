"""Keep, open and diagnose PyTorch training state."""
