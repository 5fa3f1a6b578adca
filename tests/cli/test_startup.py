"""What starting costs: which modules are imported where nothing is to be done yet."""

import subprocess
import sys

import pytest

from holdtrue.cli import _COMMANDS

# Each takes tens to thousands of milliseconds, or imports one that does.
HEAVY = {
    "torch",
    "numpy",
    "rich",
    "msgspec",
    "xxhash",
    "asyncio",
    "holdtrue.checkpoint",
    "holdtrue.findings",
    "holdtrue.limits",
}


def imported(code: str) -> set[str]:
    """The modules that a new process has at the end of some code."""
    script = f"import sys\n{code}\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def called(*arguments: str) -> set[str]:
    line = ["holdtrue", *arguments]
    return imported(f"""
sys.argv = {line!r}
from holdtrue.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
""")


def test_importing_holdtrue_imports_nothing_else_of_it():
    added = imported("import holdtrue") - imported("")
    assert added == {"holdtrue"}


def test_the_public_names_are_all_there():
    names = imported(
        "import holdtrue\nassert dir(holdtrue) == sorted(holdtrue.__all__)\n"
        "assert holdtrue.HoldtrueError and holdtrue.Finding"
    )
    assert "holdtrue.findings" in names
    assert not names & {"torch", "numpy", "rich"}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_help_imports_no_command(arguments):
    assert not called(*arguments) & HEAVY


@pytest.mark.parametrize("command", sorted(_COMMANDS))
def test_the_help_of_a_command_imports_nothing_that_works(command):
    assert not called(command, "--help") & HEAVY


def test_completion_imports_no_command_that_works():
    """The shell asks with every press of the key."""
    names = imported("""
import os
os.environ |= {"_HOLDTRUE_COMPLETE": "bash_complete", "COMP_WORDS": "holdtrue doctor --o",
               "COMP_CWORD": "2"}
sys.argv = ["holdtrue"]
from holdtrue.cli import cli
try:
    cli(prog_name="holdtrue")
except SystemExit:
    pass
""")
    assert "holdtrue.cli.doctor" in names
    assert not names & HEAVY
