"""Each code has a page, each page's example gives its finding, and the finding reads as written."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from emitted import emitted, written
from examples import GOLDEN, WITHOUT_EXAMPLE, example, finding, golden_text, run

from holdtrue.doctor.explain import codes, near_codes, page, pages

SECTIONS = ("What happened", "How it comes about", "Example", "How to mend it", "How to avoid it")


def test_every_code_that_can_be_emitted_has_a_page():
    assert emitted() - set(codes()) == set()


def test_every_page_is_of_a_code_that_is_emitted():
    assert set(codes()) - written() == set()


def test_the_search_for_codes_finds_them_however_they_are_given():
    known = emitted()
    assert "shape-mismatch" in known  # grouped("shape-mismatch", …)
    assert "path-missing" in known  # refuse(path, "path-missing", …)
    assert "disk-full" in known  # code, what = "disk-full", …
    assert "tie-lost" in known  # for lost, code in (…, "tie-lost")
    assert "architecture-changed" in known  # code=CHANGED
    assert "git-lfs-pointer" in known
    assert "torch-zip" not in known


@pytest.mark.parametrize("code", codes())
def test_a_page_has_its_parts(code):
    found = page(code)
    lines = found.text.splitlines()
    assert lines[0] == f"# {code}"
    assert found.title == lines[2]
    assert found.title.endswith((".", "…"))
    assert len(found.title) <= 90
    names = list(found.sections)
    assert names[:5] == list(SECTIONS)
    assert names[5:] in ([], ["Messages"])
    assert all(found.sections.values())
    assert "weights_only=False" not in found.text
    assert len(set(found.messages)) == len(found.messages)
    assert (code in WITHOUT_EXAMPLE) == (example(code) is None)


def test_few_pages_are_without_an_example():
    assert len(WITHOUT_EXAMPLE) < 12
    assert set(codes()) >= WITHOUT_EXAMPLE.keys()


@pytest.mark.parametrize("code", [c for c in codes() if c not in WITHOUT_EXAMPLE])
def test_the_example_gives_the_finding_that_is_written(code, tmp_path, monkeypatch, figure):
    monkeypatch.chdir(tmp_path)
    report = run(code)
    found = finding(code, report)
    assert found is not None, [f.code for f in report.findings]
    assert golden_text(found, tmp_path) == (GOLDEN / f"{code}.txt").read_text(), (
        f"if the change is meant: python tests/explain/make.py {code}"
    )
    figure("findings rendered as written, from the examples of their pages")


def test_no_rendering_is_left_of_a_page_that_is_gone():
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(codes()) - WITHOUT_EXAMPLE.keys()


def test_near_codes():
    assert near_codes("missing-key")[0] == "missing-keys"
    assert page("missing-key") is None
    assert [one.code for one in pages()] == list(codes())
