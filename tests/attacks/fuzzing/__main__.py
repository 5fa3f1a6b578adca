"""`python -m attacks.fuzzing [--seconds N] [--work DIR] [TARGET …]`: fuzz the parsers in turn.

Each runs in a process of its own, since the fuzzer never returns. Inputs that found new paths are
kept in the work folder and are where the next run begins; what crashed lies there under `found`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Budgets of a file are made small, so that memory past the limit means that one was not held.
BUDGETS = {"entries": 20_000, "opcodes": 200_000, "memo": 20_000, "value_depth": 100}
BUDGETS |= dict.fromkeys(("manifest_bytes", "header_bytes", "pickle_bytes"), 1 << 20)
BUDGETS |= dict.fromkeys(("inflated_bytes", "expanded_bytes"), 16 << 20)
MEMORY = 1024  # MiB of the whole process; about 250 of them are the libraries and the fuzzer
PATIENCE = 120  # seconds for one input, which takes milliseconds; the machine may be a busy one


def main() -> int:
    given = argparse.ArgumentParser(prog="python -m attacks.fuzzing")
    given.add_argument("--seconds", type=int, default=300)
    given.add_argument("--work", type=Path, default=Path(".fuzz"))
    given.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given.add_argument("targets", nargs="*")
    asked = given.parse_args()
    if asked.inside:
        fuzz(asked.targets[0], asked.work, asked.seconds)
    for name, value in BUDGETS.items():
        os.environ[f"HOLDTRUE_{name.upper()}"] = str(value)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is missing: `make fuzz` installs it; where there is no wheel of it for this "
              "Python or system, it is built with clang: see github.com/google/atheris",
              file=sys.stderr)  # fmt: skip
        return 2
    from attacks.fuzzing.targets import TARGETS

    failed = 0
    for name in asked.targets or TARGETS:
        failed += not told(name, asked.work, asked.seconds)
    return 1 if failed else 0


def told(name: str, work: Path, seconds: int) -> bool:
    """Fuzz one parser and print a line about it. False where it crashed."""
    command = [sys.executable, "-m", "attacks.fuzzing", "--inside", "--work", str(work)]
    done = subprocess.run(
        [*command, "--seconds", str(seconds), name], stderr=subprocess.PIPE, text=True, check=False
    )
    runs = re.findall(r"#(\d+)", done.stderr)
    paths = re.findall(r"cov: (\d+)", done.stderr)
    verdict = "clean" if done.returncode == 0 else "CRASHED"
    print(f"{name:20} {int(runs[-1]) if runs else 0:>10,} inputs  "
          f"{int(paths[-1]) if paths else 0:>6,} branches  {verdict}", flush=True)  # fmt: skip
    if done.returncode:
        print("\n".join(done.stderr.splitlines()[-40:]), file=sys.stderr)
    return done.returncode == 0


def fuzz(name: str, work: Path, seconds: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["holdtrue"]):
        from attacks.fuzzing.targets import TARGETS
    corpus, found = work / "corpus" / name, work / "found"
    seeds = work / "seeds" / name
    for folder in (corpus, found, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    shared = Path("/dev/shm")
    place = shared if shared.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        target = TARGETS[name]
        atheris.Setup(
            [
                name, str(corpus), str(seeds), f"-max_total_time={seconds}",
                f"-artifact_prefix={found}/{name}-", f"-rss_limit_mb={MEMORY}",
                f"-timeout={PATIENCE}", "-max_len=8192", "-print_final_stats=1",
            ],
            lambda data: target(data, Path(folder)),
        )  # fmt: skip
        atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
