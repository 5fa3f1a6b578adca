"""The doctor's rules, one module a family, each rule a function; see `doctor/examining.py`."""
