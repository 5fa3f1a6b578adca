"""One report about a checkpoint: the doctor's rules, and what restoring into live objects finds."""
