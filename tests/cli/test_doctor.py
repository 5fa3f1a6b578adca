"""`holdtrue doctor`: what it prints, in which form, and its exit status."""

import json
import os
import pty
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch

import holdtrue
from holdtrue.cli import main
from holdtrue.findings import render_report, report_to_builtins

HOLDTRUE = str(Path(sys.executable).with_name("holdtrue"))
SCHEMA = json.loads((files("holdtrue") / "report.schema.json").read_text())
FACTORIES = """
import torch
def fits(): return torch.nn.Linear(3, 2)
def other(): return torch.nn.Linear(3, 5)
def broken(): raise OSError("no such disk")
def no_module(): return 3
"""


@pytest.fixture
def doctor(monkeypatch, capsys, tmp_path):
    """Calls it in a folder with a good file, a cut one, and functions that make models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    torch.save(torch.nn.Linear(3, 2).state_dict(), "good.pt")
    torch.save({"w": torch.ones(4000)}, "cut.pt")
    Path("cut.pt").write_bytes(Path("cut.pt").read_bytes()[:9000])
    Path("makers.py").write_text(FACTORIES)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["holdtrue", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return call


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["good.pt"], 0),
        (["good.pt", "--deep"], 0),
        (["good.pt", "--model", "makers.py:fits"], 0),
        (["good.pt", "--model", "makers.py:other"], 1),
        (["cut.pt"], 1),
        (["makers.py"], 1),
        (["."], 1),
        (["nowhere.pt"], 2),
        (["/dev/null"], 2),
        (["good.pt", "--model", "makers.py:broken"], 2),
        (["good.pt", "--model", "makers.py:no_module"], 2),
        (["good.pt", "--model", "makers.py:absent"], 2),
        (["good.pt", "--model", "no_such_module:Net"], 2),
        (["good.pt", "--no-such-option"], 2),
        ([], 2),
    ],
)
def test_exit_status(doctor, arguments, status):
    got, out, err = doctor(*arguments)
    assert got == status
    assert "Traceback" not in out + err
    if arguments and "--no-such-option" not in arguments:
        assert out.strip()


@pytest.mark.parametrize("arguments", [["good.pt"], ["cut.pt"], ["cut.pt", "--deep"], ["."]])
def test_json_is_the_report(doctor, arguments):
    _, out, _ = doctor(*arguments, "--json")
    shown = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    jsonschema.validate(shown, SCHEMA)
    report = holdtrue.diagnose(arguments[0], deep="--deep" in arguments)
    assert shown == json.loads(json.dumps(report_to_builtins(report)))


@pytest.mark.parametrize("argument", ["nowhere.pt", "/dev/null"])
def test_json_where_nothing_could_be_checked(doctor, argument):
    status, out, _ = doctor(argument, "--json")
    assert status == 2
    jsonschema.validate(json.loads(out), SCHEMA)


def test_json_of_a_model_that_does_not_fit(doctor):
    _, out, _ = doctor("good.pt", "--model", "makers.py:other", "--json")
    shown = json.loads(out)
    jsonschema.validate(shown, SCHEMA)
    assert "shape-mismatch" in {finding["code"] for finding in shown["findings"]}


@pytest.mark.parametrize("name", ["good.pt", "cut.pt", "makers.py"])
def test_the_text_is_the_reports_own(doctor, name):
    _, out, err = doctor(name)
    text = render_report(holdtrue.diagnose(name)) + "\n"
    assert out.startswith(text)
    # Beyond it there is only a word on where to read more.
    assert all(line.startswith("holdtrue explain ") for line in out[len(text) :].splitlines())
    assert not err


def test_the_first_line_says_what_the_file_is(doctor):
    _, out, _ = doctor("good.pt")
    assert (
        out.splitlines()[0] == "good.pt · PyTorch zip, state dict · 32 B · read without running it"
    )


def _on_a_terminal(arguments, environment):
    """What it writes when its output is a terminal."""
    shown, terminal = pty.openpty()
    try:
        subprocess.run(
            [HOLDTRUE, "doctor", *arguments],
            stdout=terminal,
            stderr=terminal,
            env={"PATH": os.environ["PATH"], "TERM": "xterm-256color", **environment},
            check=False,
        )
    finally:
        os.close(terminal)
    try:
        return os.read(shown, 1 << 16).decode()
    finally:
        os.close(shown)


def test_colour_on_a_terminal_and_none_where_it_is_not_wanted(doctor):
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    coloured = _on_a_terminal(["cut.pt"], path)
    plain = _on_a_terminal(["cut.pt"], {**path, "NO_COLOR": "1"})
    assert "\x1b[1;31merror" in coloured
    assert "\x1b[3" not in plain
    assert "\x1b[9" not in plain
    assert "error[" in plain
