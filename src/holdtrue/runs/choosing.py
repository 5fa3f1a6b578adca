"""Which checkpoint a resume is asked for, and what becomes of the steps after it."""

import logging
import operator
import os
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from holdtrue.errors import OpenError, fail
from holdtrue.findings import Finding
from holdtrue.records.manifest import Ranking, Summary
from holdtrue.storage.commit import sync_directory
from holdtrue.storage.locating import best_first
from holdtrue.storage.unranked import no_best

_log = logging.getLogger("holdtrue")

At = Literal["latest", "best"] | int


def candidates(
    run: Path,
    at: Any,
    found: dict[int, Path],
    manifests: Mapping[int, Summary | None],
    ranking: Ranking | None,
) -> list[tuple[int, Path]]:
    """The checkpoints to try, in order: of a step that was asked for by number, only that one.

    Raises OpenError where there is none such; a run without any checkpoint has none to try, unless
    a step was asked for.
    """
    if at == "latest":
        return list(reversed(found.items()))
    if at == "best":
        readable = [(step, m) for step, m in manifests.items() if m is not None]
        # As `run@best` does: what the run was saved with, where nothing is said here.
        said = ranking or next((m.ranking for _, m in reversed(readable) if m.ranking), None)
        order = best_first(readable, said) if said else []
        if found and not order:
            raise fail(OpenError, f"{run}@best", no_best(run, readable, said, "run.resume()"))
        return [(step, found[step]) for step in order]
    try:
        step = -1 if isinstance(at, bool) else operator.index(at)  # NumPy's whole numbers too
    except TypeError:
        step = -1
    if step < 0:
        raise ValueError(f'run.resume(at={at!r}): give "latest", "best" or a step')
    if step not in found:
        raise fail(OpenError, f"{run}@{step}", _no_step(run, step, list(found)))
    return [(step, found[step])]


def later(found: Mapping[int, Path], step: int | None) -> list[int]:
    """The steps after the one restored: those of a training that is given up by going on here."""
    return [s for s in found if step is not None and s > step]


def put_later_aside(run: Path, doomed: list[int], found: Mapping[int, Path]) -> None:
    """Rename checkpoints to abandoned-step-…: nothing is deleted, and none is the latest."""
    for step in reversed(doomed):  # the newest first: killed in between, the latest is never it
        place = found.get(step)
        if place is not None:
            aside = free_name(place, "abandoned")
            place.rename(aside)
            _log.warning("step %d belongs to a training that was given up: now %s", step, aside)
    sync_directory(run)


def free_name(target: Path, word: str) -> Path:
    """Beside the target: damaged-step-000000003, and -2, -3, … where that is taken."""
    name = f"{word}-{target.name}"
    names = chain((name,), (f"{name}-{number}" for number in count(2)))
    return next(p for n in names if not os.path.lexists(p := target.parent / n))


def steps_given_up(run: Path, step: int, doomed: list[int]) -> Finding:
    come = "comes" if len(doomed) == 1 else "come"
    return Finding(
        code="later-steps-given-up",
        severity="warning",
        where=str(run),
        what=f"step {step} was restored; {_listed(doomed)} {come} after it",
        why="the training goes on from here another way: the next save renames those to "
        "abandoned-step-…, so that they are not taken for its latest or best",
        fix="goes on from the newest after all; or save into another run, to keep both",
        command="run.resume()",
    )


def later_steps_there(run: Path, step: int, others: list[int]) -> Finding:
    return Finding(
        code="later-steps-there",
        severity="error",
        where=str(run),
        what=f"step {step} is not saved: {_listed(others)} {'is' if len(others) == 1 else 'are'} "
        "here, and this training did not go back from there",
        why="a resume would take the latest of those for this training's, and pruning this one, "
        "being older, for what can go",
        fix="goes on from the latest; with at=STEP back to a step, which puts later ones aside; or "
        "save into another directory",
        command="run.resume()",
    )


def _no_step(run: Path, at: int, present: list[int]) -> Finding:
    return Finding(
        code="step-missing",
        severity="error",
        where=str(run),
        what=f"the run has no checkpoint of step {at}",
        why=f"it has {_listed(present)}" if present else "it has none at all",
        fix="resume at one of those" if present else "check the path; run.resume() begins at 0",
        command=f"run.resume(at={min(present, key=lambda s: abs(s - at))})" if present else "",
    )


def _listed(found: list[int]) -> str:
    shown = ", ".join(map(str, found[:12])) + (", …" if len(found) > 12 else "")
    return ("step " if len(found) == 1 else "steps ") + shown
