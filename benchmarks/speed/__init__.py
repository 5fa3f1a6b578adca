"""How fast training state is saved, loaded and kept behind a training loop, beside what the machine
can do and beside what others do. Run it with `make bench`, or `python -m benchmarks`.
"""
