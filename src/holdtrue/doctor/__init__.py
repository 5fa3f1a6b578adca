"""What to do with a checkpoint that somebody else wrote: find its models, carry it over."""
