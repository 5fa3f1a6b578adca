"""Broken and odd checkpoints, a module a family; every public function is a case."""
