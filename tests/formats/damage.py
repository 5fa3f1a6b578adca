"""Damage for tests: every truncation, and random flips that always change a byte."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from holdtrue.errors import HoldtrueError


def truncations(data: bytes) -> Iterator[bytes]:
    for length in range(len(data)):
        yield data[:length]


def flips(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` copies with one to four bytes changed; XOR, so that each byte does change."""
    chance = random.Random(seed)
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            copy[chance.randrange(len(copy))] ^= chance.randrange(1, 256)
        yield bytes(copy)


def survives(
    path: Path, variants: Iterator[bytes], read: Callable[[str], object]
) -> tuple[int, int]:
    """Read every variant: a result or a HoldtrueError with findings, nothing else. Both counts."""
    opened = refused = 0
    for data in variants:
        path.write_bytes(data)
        try:
            read(str(path))
        except HoldtrueError as error:
            refused += 1
            check_findings(error)
        else:
            opened += 1
    return opened, refused


def check_findings(error: HoldtrueError) -> None:
    assert error.report.findings, "an error without a finding"
    for finding in error.report.findings:
        assert finding.code
        assert finding.what
        assert "weights_only=False" not in f"{finding.why}{finding.fix}"
