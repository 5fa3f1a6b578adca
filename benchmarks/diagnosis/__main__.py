"""`python -m benchmarks.diagnosis [--seed N] [--no-peers] [--write]`: all cases, all tools."""

import argparse
import json
import logging
import os
import platform
import re
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.diagnosis import peers, tables
from benchmarks.diagnosis.broken import all_cases
from benchmarks.diagnosis.healthy import all_samples
from benchmarks.diagnosis.judging import Verdict, judge

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "benchmarks" / "results"
_PAGE = _ROOT / "docs" / "diagnosis-bench.md"
_PACKAGES = ("torch", "numpy", "safetensors", "transformers", "lightning", "picklescan", "ckptkit")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0, help="other names, sizes and bytes")
    options.add_argument("--no-peers", action="store_true", help="the doctor alone")
    options.add_argument(
        "--write", action="store_true", help="write benchmarks/results and the page"
    )
    asked = options.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    began = time.perf_counter()
    compared = None if asked.no_peers else peers
    verdicts = [judge(case, asked.seed, compared) for case in all_cases()]
    wrong, tried, skipped = _healthy(asked.seed)
    skipped += [f"{v.family}/{v.name}: {v.skipped}" for v in verdicts if v.skipped]
    page = _markdown(verdicts, wrong, tried, skipped, asked.seed)
    print(page)
    print(f"\n{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if asked.write:
        _write(verdicts, wrong, tried, skipped, page, asked.seed)


def _healthy(seed: int) -> tuple[dict[str, list[str]], int, list[str]]:
    wrong: dict[str, list[str]] = {}
    skipped: list[str] = []
    tried = 0
    for sample in all_samples():
        try:
            alarms = sample.alarms(seed)
        except ModuleNotFoundError as error:
            skipped.append(f"healthy/{sample.name}: {error.name} is not installed")
            continue
        tried += 1
        if alarms:
            wrong[sample.name] = alarms
    return wrong, tried, skipped


def _markdown(
    verdicts: list[Verdict], wrong: dict[str, list[str]], tried: int, skipped: list[str], seed: int
) -> str:
    parts = [
        f"Seed {seed}; {_setting()}.",
        tables.markdown(tables.by_family(verdicts, tried, len(wrong))),
    ]
    if any(v.peers for v in verdicts):
        parts += [
            "## Beside what users have today",
            tables.markdown(tables.side_by_side(verdicts)),
            tables.markdown(tables.silence(verdicts)),
        ]
    parts += ["## What is not right", tables.misses(verdicts)]
    if wrong:
        parts += ["## False alarms", *(f"- `{n}`: {a[0][:200]}" for n, a in wrong.items())]
    if skipped:
        parts += ["## Not tried", "\n".join(f"- {line}" for line in skipped)]
    return "\n\n".join(parts)


def _setting() -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} absent")
    return f"Python {platform.python_version()}, " + ", ".join(found)


def _write(
    verdicts: list[Verdict],
    wrong: dict[str, Any],
    tried: int,
    skipped: list[str],
    page: str,
    seed: int,
) -> None:
    _RESULTS.mkdir(exist_ok=True)
    value = {
        "seed": seed,
        "setting": _setting(),
        "healthy": {"tried": tried, "false_alarms": _without_folders(wrong)},
        "skipped": skipped,
        "cases": [_without_folders(v.as_json()) for v in verdicts],
    }
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
    (_RESULTS / "diagnosis.json").write_text(text + "\n")
    (_RESULTS / "diagnosis.md").write_text(f"# The diagnosis, measured\n\n{page}\n")
    before = _PAGE.read_text().partition("<!-- generated -->")[0]
    _PAGE.write_text(f"{before}<!-- generated -->\n\n{page}\n")


def _without_folders(value: Any) -> Any:
    """Temporary folders have other names each time, and packages lie elsewhere on each machine."""
    if isinstance(value, str):
        return re.sub(r"/\S*?/(holdtrue-(case|well)-\w+|site-packages)/", "", value)[:400]
    if isinstance(value, dict):
        return {k: _without_folders(v) for k, v in value.items()}
    return [_without_folders(v) for v in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
