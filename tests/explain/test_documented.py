"""What the documentation says of findings is what is found."""

import contextlib
import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from make_codes import LIST, text

README = Path(__file__).parent.parent.parent / "README.md"
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_list_of_codes_is_that_of_the_pages():
    assert LIST.read_text() == text(), "python tests/explain/make_codes.py"


def test_the_readme_shows_what_the_doctor_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    printed = io.StringIO()
    blocks = _BLOCK.findall(README.read_text())
    at = next(i for i, (_, block) in enumerate(blocks) if "holdtrue.diagnose(" in block)
    with contextlib.redirect_stdout(printed):
        for kind, block in blocks[: at + 1]:
            if kind == "python":
                exec(compile(block, "README.md", "exec"), names)
    assert blocks[at + 1][0] == "text"
    assert blocks[at + 1][1] in printed.getvalue()
