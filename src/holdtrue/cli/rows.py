"""A run's checkpoints as rows: for people, for a pipe, and as JSON."""

from typing import Any

from rich.table import Table

from holdtrue.cli.render import age, size
from holdtrue.runs.history import Entry, ranked_by


def line(entry: Entry) -> str:
    """One checkpoint in one line of text, for what is not a terminal."""
    if entry.manifest is None:
        return f"step {entry.step}  damaged: {entry.damaged}"
    metrics = " ".join(f"{name}={_number(value)}" for name, value in entry.metrics.items())
    best = "  ★ best" if entry.best else ""
    return f"step {entry.step}  {entry.manifest.created}  {metrics}  {size(entry.nbytes)}{best}"


def table(entries: list[Entry]) -> Table:
    names = list(dict.fromkeys(name for entry in entries for name in entry.metrics))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    headings = (
        "step",
        "age",
        *names,
        "size",
        "linked",
        "stall",
        "durable",
        "verified",
        "commit",
        "",
    )
    for heading in headings:
        shown.add_column(heading, justify="right" if heading not in ("", "commit") else "left")
    by = ranked_by(entries)
    for entry in entries:
        if entry.manifest is None:
            blank = ("" for _ in range(len(headings) - 2))
            shown.add_row(str(entry.step), *blank, f"damaged: {entry.damaged}")
            continue
        remarks = [f"★ best {by}"] if entry.best else []
        metrics = entry.metrics
        shown.add_row(
            str(entry.step),
            age(entry.manifest.created),
            *(_number(metrics.get(name)) for name in names),
            size(entry.nbytes),
            *_cost(entry),
            entry.checked,
            _commit(entry),
            ", ".join([*remarks, *entry.changes]),
        )
    return shown


def _cost(entry: Entry) -> tuple[str, str, str]:
    """Files linked of all, seconds the training waited, seconds until durable."""
    cost = entry.manifest.cost if entry.manifest else None
    if entry.manifest is None or cost is None:
        return "", "", ""
    return (
        f"{cost.linked}/{len(entry.manifest.files)}",
        f"{cost.stall:.3f} s",
        f"{cost.seconds:.2f} s",
    )


def _commit(entry: Entry) -> str:
    git = entry.manifest.environment.git if entry.manifest else None
    return f"{git.commit[:8]}{'+' if git.dirty else ''}" if git else ""


def row(entry: Entry) -> dict[str, Any]:
    if entry.manifest is None:
        return {"step": entry.step, "path": str(entry.path), "damaged": entry.damaged}
    cost = entry.manifest.cost
    git = entry.manifest.environment.git
    return {
        "step": entry.step,
        "path": str(entry.path),
        "created": entry.manifest.created,
        "metrics": {name: _plain(value) for name, value in entry.metrics.items()},
        "bytes": entry.nbytes,
        "best": entry.best,
        "verified": entry.checked,
        "cost": None if cost is None else {n: getattr(cost, n) for n in cost.__struct_fields__},
        "commit": git.commit if git else None,
        "changes": list(entry.changes),
    }


def _plain(value: Any) -> Any:
    # JSON has no NaN and no infinity; as text they survive every reader.
    finite = isinstance(value, int | float) and value == value and abs(value) != float("inf")
    return value if finite else str(value)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
