"""`python -m benchmarks`: how fast saving and loading are, and with `growth` first, how the time
grows; the other measurements are run by their own names."""

import sys
from importlib import import_module
from importlib.util import find_spec

_GROWTH = "benchmarks.speed.growth"

if __name__ == "__main__":
    if sys.argv[1:2] == ["growth"]:
        if find_spec(_GROWTH) is None:
            sys.exit("growth is not measured in this version")
        del sys.argv[1]
        import_module(_GROWTH).main()
    else:
        from benchmarks.speed.command import main

        main()
