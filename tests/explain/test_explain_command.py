"""holdtrue explain, as people call it."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from holdtrue.cli.explain import command
from holdtrue.doctor.explain import codes, page

POINTER = "_pickle.UnpicklingError: Unsupported operand 118"


def explain(*args, piped=""):
    return CliRunner().invoke(command, list(args), input=piped)


def test_without_arguments_all_codes_are_listed():
    done = explain()
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(codes())
    assert page("web-page").title in done.stdout
    listed = json.loads(explain("--json").stdout)
    assert [one["code"] for one in listed] == list(codes())


def test_a_code_gives_its_page_as_it_is():
    done = explain("web-page")
    assert (done.exit_code, done.stdout) == (0, page("web-page").text)
    told = json.loads(explain("web-page", "--json").stdout)
    assert told["code"] == "web-page"
    assert list(told["sections"])[:2] == ["What happened", "How it comes about"]


def test_a_code_that_is_written_almost_right():
    done = explain("missing-key")
    assert done.exit_code == 2
    assert "did you mean missing-keys" in done.stderr
    assert "missing-keys" in json.loads(explain("missing-key", "--json").stdout)["near"]


@pytest.mark.parametrize("how", ["argument", "dash", "pipe"])
def test_a_message_however_it_is_given(how):
    given = {"argument": ((POINTER,), ""), "dash": (("-",), POINTER), "pipe": ((), POINTER)}
    args, piped = given[how]
    done = explain(*args, piped=piped)
    assert done.exit_code == 0
    assert "operand 118 is the byte 0x76 ('v'): a git-lfs pointer" in done.stdout
    assert page("git-lfs-pointer").text in done.stdout


def test_the_end_of_a_long_log_is_read():
    log = "step 1 loss 0.5\n" * 100_000
    trace = f'Traceback (most recent call last):\n  File "a.py", line 1, in f\n{POINTER}\n'
    done = explain("-", piped=log + trace)
    assert done.stdout.startswith(POINTER)


def test_a_message_as_json():
    told = json.loads(explain(POINTER, "--json").stdout)
    assert told["message"] == POINTER
    assert told["pages"][0] == {
        "code": "git-lfs-pointer",
        "title": page("git-lfs-pointer").title,
        "fit": "sure",
    }


def test_a_guess_is_marked():
    done = explain("the optimizer has parameters in another order, matched by position")
    assert done.exit_code == 0
    assert "perhaps optimizer-" in done.stdout


def test_what_nothing_fits():
    for text in ("the cat sat on the mat", "xyzzy"):
        done = explain(text)
        assert (done.exit_code, done.stdout) == (2, "")
        assert "no page fits" in done.stderr


def test_torchs_advice_is_not_repeated(tmp_path):
    torch.save({"v": pytest.approx}, tmp_path / "f.pt")
    with pytest.raises(Exception, match="Weights only load failed") as caught:
        torch.load(tmp_path / "f.pt")
    done = explain(f"UnpicklingError: {caught.value}")
    assert done.exit_code == 0
    assert "weights_only=False" not in done.stdout


def test_the_schema_is_printed():
    assert "Finding" in json.loads(explain("--schema").stdout)["$defs"]


def test_it_needs_no_torch_and_shows_its_command_after_a_report(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['holdtrue', *sys.argv[1:]]\n"
        "from holdtrue.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", str(tmp_path / "absent.pt")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout.rstrip().endswith("holdtrue explain path-missing says more")
    done = subprocess.run(
        [sys.executable, "-c", code, "explain", "path-missing"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout == page("path-missing").text


def test_a_pipe_that_stays_open_and_silent_is_not_waited_for():
    program = "from holdtrue.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "explain"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        listed = running.stdout.read()  # with its stdin still open
        running.stdin.close()
    assert "shape-mismatch " in listed
    assert running.returncode == 0
