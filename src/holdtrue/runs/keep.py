"""Which checkpoints of a run are kept."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from msgspec import Struct

from holdtrue.records.manifest import Manifest, Ranking, Summary
from holdtrue.storage.locating import best_first

_AGE = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h|d|w)\Z")
_UNITS = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Keep(Struct, frozen=True, kw_only=True):
    """What stays: the union of its rules, and always the newest. Without rules, everything.

    `last` newest ones; the `best` ones by metric `by` (`mode` "min" or "max"; one that is missing
    or NaN never counts, ties go to the later); every one whose step is a multiple of `every`; those
    saved `within` the last time span, a timedelta or a text like "90s", "30min", "2h", "7d", "2w".
    """

    last: int | None = None
    best: int | None = None
    by: str | None = None
    mode: Literal["min", "max"] = "min"
    every: int | None = None
    within: timedelta | str | None = None

    def __post_init__(self) -> None:
        for name in ("last", "best", "every"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and (not whole or value < 1):
                raise ValueError(f"Keep({name}={value!r}): give a whole number from 1, or None")
        if self.mode not in ("min", "max"):
            raise ValueError(f'Keep(mode={self.mode!r}): give "min" or "max"')
        if self.best is not None and not self.by:
            raise ValueError('Keep(best=…) needs the metric to go by, e.g. by="val_loss"')
        if self.within is not None and self.age is None:
            raise ValueError(f'Keep(within={self.within!r}): give a timedelta, or "30min", "2h"')

    @property
    def ranking(self) -> Ranking | None:
        return Ranking(by=self.by, mode=self.mode) if self.by else None

    @property
    def age(self) -> timedelta | None:
        """`within` as a time span; None without one, or where it is none."""
        if isinstance(self.within, timedelta):
            return self.within if self.within > timedelta(0) else None
        found = _AGE.match(self.within) if isinstance(self.within, str) else None
        return timedelta(**{_UNITS[found[2]]: float(found[1])}) if found else None

    @property
    def rules(self) -> bool:
        """False where everything stays."""
        return any(r is not None for r in (self.last, self.best, self.every, self.within))


def to_remove(
    keep: Keep, checkpoints: Sequence[tuple[int, Manifest | Summary | None]]
) -> list[int]:
    """Steps that no rule keeps. `None` stands for a manifest that cannot be read.

    What cannot be read is never removed: its owner may want to salvage it.
    """
    if not keep.rules:
        return []
    readable = [(step, m) for step, m in sorted(checkpoints) if m is not None]
    kept = placed(keep, checkpoints)
    if keep.every is not None:
        kept.update(step for step, _ in readable if step % keep.every == 0)
    if keep.age is not None:
        since = datetime.now(UTC) - keep.age
        kept.update(step for step, manifest in readable if _is_since(manifest.created, since))
    return [step for step, _ in readable if step not in kept]


def placed(keep: Keep, checkpoints: Sequence[tuple[int, Manifest | Summary | None]]) -> set[int]:
    """Steps that `last` and `best` keep: each takes a place that another would have else."""
    readable = [(step, m) for step, m in sorted(checkpoints) if m is not None]
    found = {step for step, _ in readable[-max(keep.last or 1, 1) :]}
    if keep.best is not None and keep.ranking is not None:
        found.update(best_first(readable, keep.ranking)[: keep.best])
    return found


def parse_keep(text: str) -> Keep:
    """A Keep as the command line spells it: "last=3,best=2,by=val_loss". Raises ValueError."""
    given: dict[str, str | int] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, equals, value = item.partition("=")
        if name not in Keep.__struct_fields__ or not equals:
            names = ", ".join(Keep.__struct_fields__)
            raise ValueError(f"{item!r}: write name=value, with one of {names}")
        number = name in ("last", "best", "every")
        if number and not value.isdecimal():
            raise ValueError(f"{item!r}: give a whole number")
        given[name] = int(value) if number else value
    return Keep(**given)  # type: ignore[arg-type]


def _is_since(created: str, since: datetime) -> bool:
    """Also for a time that cannot be read: what is not known to be old stays."""
    try:
        return datetime.fromisoformat(created) >= since
    except (ValueError, TypeError):
        return True
