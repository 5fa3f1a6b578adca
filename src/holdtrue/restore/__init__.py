"""Records to live objects: plan everything, check everything, then apply all of it or nothing."""
