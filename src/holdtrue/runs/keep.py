"""Which checkpoints of a run are kept."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from holdtrue.records.manifest import Manifest, Ranking
from holdtrue.storage.locating import best_first


class Keep(Struct, frozen=True, kw_only=True):
    """What stays: the union of its rules, and always the newest. Without rules, everything.

    `last` newest ones; the `best` ones by metric `by` (`mode` "min" or "max"; one that is missing
    or NaN never counts, ties go to the later); every one whose step is a multiple of `every`.
    """

    last: int | None = None
    best: int | None = None
    by: str | None = None
    mode: Literal["min", "max"] = "min"
    every: int | None = None

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

    @property
    def ranking(self) -> Ranking | None:
        return Ranking(by=self.by, mode=self.mode) if self.by else None


def to_remove(keep: Keep, checkpoints: Sequence[tuple[int, Manifest | None]]) -> list[int]:
    """Steps that no rule keeps. `None` stands for a manifest that cannot be read.

    What cannot be read is never removed: its owner may want to salvage it.
    """
    if keep.last is None and keep.best is None and keep.every is None:
        return []
    readable = [(step, m) for step, m in sorted(checkpoints) if m is not None]
    kept = {step for step, _ in readable[-max(keep.last or 1, 1) :]}
    if keep.best is not None and keep.ranking is not None:
        kept.update(best_first(readable, keep.ranking)[: keep.best])
    if keep.every is not None:
        kept.update(step for step, _ in readable if step % keep.every == 0)
    return [step for step, _ in readable if step not in kept]
