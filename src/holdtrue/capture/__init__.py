"""Live objects to records: values, modules, optimizers, random states. What a save reads."""
