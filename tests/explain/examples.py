"""Runs the example of a page, and writes the finding as text that is the same everywhere."""

import os
import random
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

import holdtrue
from holdtrue.doctor.explain import page
from holdtrue.findings import render_finding

GOLDEN = Path(__file__).parent / "golden"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# Pages that have no example, and why none can be run everywhere.
WITHOUT_EXAMPLE = {"permission-denied": "for root, as whom containers run, nothing is denied"}


def example(code):
    """The code of a page's example; None where it has none."""
    found = BLOCK.search(page(code).sections["Example"])
    return found[1] if found else None


def run(code):
    """The report that a page's example leaves or raises; it runs where the caller is."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    names = {"__name__": "example"}
    try:
        exec(compile(example(code), f"{code}.md", "exec"), names)
    except holdtrue.HoldtrueError as error:
        return error.report
    return names["report"]


def finding(code, report):
    """The finding of the report that the page is about."""
    return next((f for f in report.findings if f.code == code), None)


# What depends on the machine, the versions and the day, as what it is.
_VARIES = (
    (re.compile(re.escape(torch.__version__.partition("+")[0]) + r"(\+\w+)?"), "<torch>"),
    (re.compile(r"\b[0-9a-f]{8}\b(?=, the archive)|(?<=says )[0-9a-f]{8}\b"), "<crc>"),
    (re.compile(r"-?\b(\d+\.\d{6,}(e-?\d+)?|\d{13,})\b"), "<number>"),
    (re.compile(r"\b[0-9a-f]{12,}\b"), "<hex>"),
    (re.compile(r"\b0x[0-9a-f]+\b"), "<address>"),
    (re.compile(r"(?<=free )[\d,]+"), "<n>"),
    (re.compile(r"\d[\d,]*(?=( bytes| elements|\.\d+ [KMG]iB))"), "<n>"),
    (re.compile(r"(?<=byte )\d+|(?<=offset )[\d,]+|(?<=steps )\d+|(?<=threads )\d+"), "<n>"),
    (re.compile(r"(?<=process )\d+ on \S+, since [-+:T\d]+"), "<n> on <host>, since <time>"),
    (re.compile(r"cpython-3\.\d+"), "<python>"),
    (re.compile(r"\b\d\.?\d*e[-+]\d+|\b0\.0\d+"), "<small>"),
)


def golden_text(found, here):
    """The plain rendering of a finding, without what differs from machine to machine."""
    text = render_finding(found)
    for place in (str(here), os.path.realpath(here)):
        text = text.replace(place, "<here>")
    text = text.replace(tempfile.gettempdir(), "<temp>")
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text + "\n"
