"""The command line: one file a command, the only place that prints.

Data go to stdout, progress and logs to stderr. Exit status 0: clean, 1: findings, 2: could not
check.
"""

import os
import sys
from importlib import import_module
from io import TextIOWrapper

import click

# Name → one line of help. Each command's module is imported when it is called.
_COMMANDS = {
    "convert": "A checkpoint, whatever its format, in another one.",
    "demo": "Train, be killed while saving, resume; compare bit by bit.",
    "diff": "What differs between two checkpoints of any format.",
    "doctor": "What is wrong with a checkpoint, why, and how to mend it.",
    "explain": "What a finding's code, or another tool's message, means.",
    "inspect": "What a checkpoint holds: parts, tensors, values, origin.",
    "log": "The checkpoints of a run, with their metrics.",
    "prune": "Remove the checkpoints of a run that no rule keeps.",
    "salvage": "What is whole of a damaged file, as a file that is whole.",
    "seal": "The SHA-256 of every file of a checkpoint, signed.",
    "verify": "Read every byte and compare it with its digest.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"holdtrue.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, so that --help need not import what the commands import.
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdtrue")
def cli() -> None:
    """Keep, open and diagnose PyTorch training state.

    What you save is what you load, exactly. Or you are told what differs, why, and how to mend it,
    before anything is touched.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name in a file may hold half a character, which no terminal can be given.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """The console script. No bad input ends in a traceback."""
    try:
        status = _called()
        sys.stdout.flush()
    except BrokenPipeError:
        # `holdtrue log run | head`: the reader has seen enough.
        _discard_output()
        status = 0
    except OSError as error:
        if error.filename is not None:
            raise
        # Writing to stdout; where a file is read or written, its name comes with the error.
        _discard_output()
        print(f"holdtrue: the output could not be written: {error.strerror}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _called() -> int:
    try:
        # Not standalone: click would end a broken pipe with status 1.
        return int(cli(standalone_mode=False) or 0)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        print("Aborted!", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ == "SettingError":  # raised while the module that has it is made
            print(f"holdtrue: {error}", file=sys.stderr)
            return 2
        from holdtrue.errors import HoldtrueError  # not imported where nothing fails

        if not isinstance(error, HoldtrueError):
            raise
        from holdtrue.cli.render import show_report

        show_report(error.report, json="--json" in sys.argv[1:])
        return error.exit_code


def _discard_output() -> None:
    """What is still buffered goes nowhere, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
