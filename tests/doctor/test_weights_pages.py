"""Every code of the rules for values has a page, and its example gives the finding."""

import re
from pathlib import Path

import pytest

from holdtrue.doctor import explain, rules

_FAMILIES = ("weights", "zeros", "layers", "moments", "copies", "range_of_target")
_TEXT = "".join((Path(rules.__path__[0]) / f"{name}.py").read_text() for name in _FAMILIES)
CODES = sorted(
    {c for line in re.findall(r"code=(.*)", _TEXT) for c in re.findall(r'"(.*?)"', line)}
)


def test_the_codes_are_those_of_the_rules():
    assert {"weights-not-finite", "best-equals-last", "average-equals-raw"} <= set(CODES)
    assert len(CODES) > 15


@pytest.mark.parametrize("code", CODES)
def test_the_example_of_a_page_gives_its_code(tmp_path, monkeypatch, code):
    page = explain.page(code)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(re.search(r"```python\n(.*?)```", page.text, re.S).group(1), scope)
    assert code in {finding.code for finding in scope["report"].findings}
    assert all(len(line) <= 110 for line in page.text.splitlines())
