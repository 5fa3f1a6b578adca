"""Writes the golden renderings of all pages' findings:

python tests/explain/make.py [CODE …]

Read what changed before it is committed: it is what people read.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from examples import GOLDEN, example, finding, golden_text, run

from holdtrue.doctor.explain import codes


def main():
    GOLDEN.mkdir(exist_ok=True)
    for code in sys.argv[1:] or codes():
        if example(code) is None:
            continue
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            found = finding(code, run(code))
            text = golden_text(found, place) if found else ""
            os.chdir("/")
        if not text:
            sys.exit(f"the example of {code} gives no finding of that code")
        (GOLDEN / f"{code}.txt").write_text(text)
    if not sys.argv[1:]:
        for stale in {p.stem for p in GOLDEN.glob("*.txt")} - set(codes()):
            (GOLDEN / f"{stale}.txt").unlink()


if __name__ == "__main__":
    main()
