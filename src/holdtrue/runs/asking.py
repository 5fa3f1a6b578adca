"""What a Run is asked for, checked before anything is done."""

from pathlib import Path
from typing import Any

from msgspec import UNSET

from holdtrue.errors import HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.records.manifest import Ranking
from holdtrue.runs.keep import Keep


def check_settings(path: Path, keep: Any, **chosen: Any) -> None:
    """Raises HoldtrueError for rules that are none, and ValueError for a word that is not known."""
    if keep is not None and not isinstance(keep, Keep):
        raise fail(HoldtrueError, str(path), _no_rules(keep))
    for name, value in chosen.items():
        if value not in _WORDS[name]:
            words = " or ".join("None" if word is None else f'"{word}"' for word in _WORDS[name])
            raise ValueError(f"Run({name}={value!r}): give {words}")


def ranking_by(keep: Keep, by: str | None, mode: Any) -> Ranking:
    """How `best` is told: as asked, else by the run's own rules. Raises ValueError."""
    name = by or keep.by
    if not name:
        raise ValueError('say which metric: run.best("val_loss"), or Keep(by="val_loss")')
    if mode is not UNSET and mode not in ("min", "max"):
        raise ValueError(f'run.best(mode={mode!r}): give "min" or "max"')
    return Ranking(by=name, mode=keep.mode if mode is UNSET else mode)


_WORDS: dict[str, tuple[str | None, ...]] = {
    "busy": ("wait", "skip"),
    "verify": ("after", None),
    "on_error": ("raise", "warn"),
}


def _no_rules(keep: Any) -> Finding:
    return Finding(
        code="keep-invalid",
        severity="error",
        where=f"keep={keep!r}"[:100],
        what="keep= takes a holdtrue.Keep",
        why="which number is meant, the last or the best ones, has to be said",
        fix="Run(…, keep=holdtrue.Keep(last=3))",
    )
