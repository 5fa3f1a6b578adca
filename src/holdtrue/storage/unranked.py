"""Why no checkpoint of a run is its best one."""

from collections.abc import Iterable
from pathlib import Path

from holdtrue.findings import Finding
from holdtrue.records.manifest import Manifest, Ranking, Summary
from holdtrue.records.metrics import manifest_metrics

_MOST = 8  # steps or names that are listed


def no_best(
    run: Path,
    manifests: Iterable[tuple[int, Manifest | Summary]],
    ranking: Ranking | None,
    command: str = "",
) -> Finding:
    """The finding: no metric was named, none has it, or its values cannot be ranked."""
    metrics = {step: manifest_metrics(manifest) for step, manifest in manifests}
    what, why, fix = _reason(metrics, None if ranking is None else ranking.by)
    return Finding(
        code="best-unknown",
        severity="error",
        where=str(run),
        what=what,
        why=why,
        fix=fix,
        command=command,
    )


def _reason(metrics: dict[int, dict[str, object]], by: str | None) -> tuple[str, str, str]:
    nothing = "nothing says which checkpoint is best"
    others = sorted({repr(name) for given in metrics.values() for name in given if name != by})
    have = f"; they have {', '.join(others[:_MOST])}" if others else ""
    if by is None:
        why = "no metric was named for it" + have
        fix = 'name it, Keep(best=1, by="val_loss"), and give it to save: metrics={"val_loss": …}'
        return nothing, why, fix
    values = {step: given[by] for step, given in metrics.items() if by in given}
    if not values:
        rank = f", or rank by one that is there: Keep(by={others[0]})" if others else ""
        fix = f"give it to save: metrics={{{by!r}: …}}{rank}"
        return nothing, f"none has the metric {by!r}{have}", fix
    shown = ", ".join(f"step {step}: {str(values[step])[:20]}" for step in list(values)[:_MOST])
    rest = len(metrics) - len(values)
    lacking = f"; {rest} more {'lacks' if rest == 1 else 'lack'} it" if rest else ""
    return (
        f"no checkpoint has a {by!r} that can be ranked",
        f"NaN is neither better nor worse than anything ({shown}{lacking})",
        "choose a step by its number, and look for what made it NaN: holdtrue doctor --deep",
    )
