"""Directories on disk: publishing one atomically, and finding what is there. No torch."""
