"""A file that exists only if something of an attack was run, and payloads that make it."""

import os
from pathlib import Path


def canary() -> Path:
    return Path(os.environ["HOLDTRUE_CANARY"])


def shell() -> bytes:
    """For os.system and its like."""
    return b"touch " + os.fsencode(canary())


def python() -> bytes:
    """For eval: an expression."""
    return f"open({str(canary())!r}, 'w')".encode()
