"""What was measured: every single value, by state, measure and contender, and by round."""

import statistics
from collections.abc import Iterable

from msgspec import Struct, field

Series = dict[int, float]  # round → value


class Measured(Struct):
    """`values[state][measure][contender][round]`; seconds where the measure does not say else."""

    values: dict[str, dict[str, dict[str, Series]]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)  # state → contender → error
    few: dict[str, dict[str, str]] = field(default_factory=dict)  # state → contender → why
    nbytes: dict[str, int] = field(default_factory=dict)  # of a state's tensors
    absent: dict[str, str] = field(default_factory=dict)  # what this version does not have → why
    does: list[tuple[str, ...]] = field(default_factory=list)  # see `table.does`

    def add(self, state: str, measure: str, contender: str, number: int, value: float) -> None:
        of_state = self.values.setdefault(state, {}).setdefault(measure, {})
        of_state.setdefault(contender, {})[number] = round(value, 6)

    def series(self, state: str, measure: str, contender: str) -> Series:
        return self.values.get(state, {}).get(measure, {}).get(contender, {})

    def contenders(self, state: str, measure: str) -> list[str]:
        return list(self.values.get(state, {}).get(measure, {}))

    def median(self, state: str, measure: str, contender: str) -> float | None:
        found = self.series(state, measure, contender)
        return statistics.median(found.values()) if found else None

    def fastest(self, state: str, measure: str, among: Iterable[str]) -> str | None:
        """The contender with the lowest median."""
        known = [(self.median(state, measure, c), c) for c in among]
        found = [(m, c) for m, c in known if m is not None]
        return min(found)[1] if found else None


def quartiles(series: Series) -> tuple[float, float]:
    """Where the middle half of the values lies."""
    values = sorted(series.values())
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def paired(above: Series, below: Series) -> float | None:
    """The median over the rounds that both ran of the ratio within one round: a slow minute of the
    disk slows both, and does not count. Medians of each alone would let it."""
    ratios = [above[n] / below[n] for n in above.keys() & below.keys() if below[n]]
    return statistics.median(ratios) if ratios else None
