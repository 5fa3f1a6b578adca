"""holdtrue demo: the whole main job, told as a short story."""

import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from holdtrue.errors import OpenError


@click.command(name="demo", short_help="Train, be killed while saving, resume; compare.")
@click.option("--dir", "directory", type=click.Path(), help="Where to work; default: a new folder.")
def command(directory: str | None) -> None:
    """Train a small network on handwritten digits, kill it in the middle of a save, resume it, and
    compare every loss and every weight with a run that was never disturbed.

    Takes under a minute on two cores. Exit status 0: all equal; 1: something differs.
    """
    from holdtrue.cli.render import stdout

    for package, extra in (("torch", "torch"), ("sklearn", "demo")):
        if find_spec(package) is None:
            raise _lacking(package, extra)
    place = Path(directory) if directory else Path(tempfile.mkdtemp(prefix="holdtrue-demo-"))
    if place.exists() and any(place.iterdir()):
        raise _occupied(place)
    place.mkdir(parents=True, exist_ok=True)
    sys.exit(0 if _tell(place, stdout()) else 1)


def _tell(place: Path, console: "Console") -> bool:
    from rich.text import Text

    from holdtrue.cli.render import size
    from holdtrue.demo.story import TrainingError, compare, kill_while_saving, train_to_the_end

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style=style))

    try:
        say("1  A network learns handwritten digits, undisturbed.", "bold")
        reference = train_to_the_end(place / "undisturbed", place / "undisturbed.losses")
        say(f"   Done after {reference.seconds:.0f} s. Its losses and weights are the measure.")
        say(
            f"   It saves behind the training: the last save held it up for "
            f"{reference.stall * 1000:.0f} ms, and was durable after "
            f"{reference.durable * 1000:.0f} ms.\n",
            "dim",
        )

        say("2  The same training again. This time it is killed while it saves.", "bold")
        killed = kill_while_saving(place / "killed", place / "killed.losses")
        say(
            f"   SIGKILL after step {killed.steps}, in the middle of writing the checkpoint of "
            f"step {killed.saving}."
        )
        say(
            f"   {size(killed.leftover_bytes)} of it written, no manifest: {killed.leftover}", "dim"
        )
        if killed.attempts > 1:
            say(f"   (A save takes milliseconds: it took {killed.attempts} kills to hit one.)")
        say(f"   The newest checkpoint that exists is whole: step {killed.published}.\n")

        say("3  A new process resumes it.", "bold")
        resumed = train_to_the_end(place / "killed", place / "killed.losses")
        say(f"   From step {killed.published} to the end, {resumed.seconds:.0f} s.")
        say("   The half-written directory was cleared away on the way.\n", "dim")

        say("4  Is it the same training?", "bold")
        result = compare(reference, resumed)
    except TrainingError as error:
        raise _failed(place, error) from None
    _verdict(result.losses, "losses", [f"step {s}" for s in result.differing_losses], say)
    _verdict(result.tensors, "tensors", list(result.differing_tensors), say)
    _verdict(result.parts, "parts' other values", list(result.differing_parts), say)
    say(f"   {result.elements:,} numbers in the final state: model, optimizer and all.", "dim")
    say(f"   Accuracy on digits it never saw: {result.accuracy:.1%}\n")
    say("Look around:", "bold")
    for line in (
        f"holdtrue log {quote(str(place / 'killed'))}",
        f"holdtrue inspect {quote(str(place / 'killed@best'))}",
        f"holdtrue verify {quote(str(place / 'killed'))}",
        f"ls -R {quote(str(place))}",
    ):
        say(f"   {line}")
    return result.equal


def _verdict(count: int, what: str, differing: list[str], say: Callable[..., None]) -> None:
    if not differing:
        say(f"   ✓ {count:,} {what}, every one equal, bit for bit", "green")
    else:
        shown = ", ".join(differing[:5])
        say(f"   ✗ {len(differing):,} of {count:,} {what} differ: {shown}", "bold red")


def _failed(place: Path, error: Exception) -> "OpenError":
    from holdtrue.formats.source import refuse

    return refuse(
        str(place),
        "demo-failed",
        "a training process ended before its time",
        str(error).strip()[-2000:],
        "pip install 'holdtrue[demo]' brings what the demo needs",
    )


def _lacking(package: str, extra: str) -> "OpenError":
    from holdtrue.errors import OpenError, fail
    from holdtrue.findings import Finding

    return fail(
        OpenError,
        "holdtrue demo",
        Finding(
            code="package-missing",
            severity="error",
            where=package,
            what=f"the demo needs {package}, which is not installed",
            why="it trains a real network on real data, which ship with these packages",
            fix=f"pip install 'holdtrue[{extra}]'",
        ),
    )


def _occupied(place: Path) -> "OpenError":
    from holdtrue.formats.source import refuse

    return refuse(
        str(place),
        "already-exists",
        "the folder is not empty",
        "the demo starts from nothing, and would not overwrite anything of yours",
        "choose another --dir, or leave it out",
    )
