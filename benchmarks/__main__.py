"""`python -m benchmarks`: how fast saving and loading are, and with `growth` first, how the time
grows; the other measurements are run by their own names."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["growth"]:
        from benchmarks.speed.growth_command import main as grow

        del sys.argv[1]
        grow()
    else:
        from benchmarks.speed.command import main

        main()
