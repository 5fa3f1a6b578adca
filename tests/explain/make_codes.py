"""Writes docs/codes.md, the list of all codes, from their pages:

python tests/explain/make_codes.py
"""

from pathlib import Path

from holdtrue.doctor.explain import pages

LIST = Path(__file__).parent.parent.parent / "docs" / "codes.md"
_HEAD = """# All codes

Every finding has one of these codes. `holdtrue explain CODE` shows its page, with an example and
how to mend it. This list is made from the pages, by `python tests/explain/make_codes.py`.

| code | what it says |
|---|---|
"""


def text():
    """The list as it has to be."""
    rows = (f"| [`{one.code}`]({_page(one.code)}) | {one.title} |\n" for one in pages())
    return _HEAD + "".join(rows)


def _page(code):
    return f"../src/holdtrue/doctor/pages/{code}.md"


if __name__ == "__main__":
    LIST.write_text(text())
