"""holdtrue log: the checkpoints of a run."""

import sys
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.cli.render import age, show_json, size, stdout
from holdtrue.errors import HoldtrueError, OpenError, fail
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_directory import read_manifest
from holdtrue.records.manifest import Manifest
from holdtrue.records.metrics import manifest_metrics
from holdtrue.storage.locating import best_first, steps


@click.command(name="log", short_help="The checkpoints of a run, with their metrics.")
@click.argument("run")
@click.option("--json", is_flag=True, help="One JSON list, a member a checkpoint.")
def command(run: str, json: bool) -> None:
    """The checkpoints of a run, oldest first: step, age, metrics (best marked ★), size.

    Exit status 0: each could be read; 1: one is damaged; 2: this is no run, or not readable.
    """
    found = steps(Path(run))
    if not found:
        open_checkpoint(run)  # says what is there instead
        raise _not_a_run(run)
    manifests: dict[int, Manifest] = {}
    damaged: dict[int, str] = {}
    for step, path in found.items():
        try:
            manifests[step] = read_manifest(path)
        except HoldtrueError as error:
            damaged[step] = error.report.findings[0].what
    ranking = next((m.ranking for m in reversed(manifests.values()) if m.ranking), None)
    order = best_first(manifests.items(), ranking) if ranking else []
    best = order[0] if order else None
    if json:
        show_json([_row(s, found[s], manifests.get(s), damaged.get(s), best) for s in found])
        sys.exit(1 if damaged else 0)
    names = list(dict.fromkeys(n for m in manifests.values() for n in manifest_metrics(m)))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("step", "age", *names, "size", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for step in found:
        if step in damaged:
            table.add_row(str(step), "", *("" for _ in names), "", f"damaged: {damaged[step]}")
            continue
        manifest = manifests[step]
        values = manifest_metrics(manifest)
        table.add_row(
            str(step),
            age(manifest.created),
            *(_number(values.get(n)) for n in names),
            size(sum(f.nbytes for f in manifest.files.values())),
            f"★ best {ranking.by}" if ranking and step == best else "",
        )
    stdout().print(table)
    sys.exit(1 if damaged else 0)


def _not_a_run(run: str) -> OpenError:
    return fail(
        OpenError,
        run,
        Finding(
            code="not-a-run",
            severity="error",
            where=run,
            what="this is one checkpoint, not a run of several",
            why="a run is a directory that holds step-… directories",
            fix=f"holdtrue inspect {run}",
        ),
    )


def _row(
    step: int, path: Path, manifest: Manifest | None, damaged: str | None, best: int | None
) -> dict[str, Any]:
    if manifest is None:
        return {"step": step, "path": str(path), "damaged": damaged}
    return {
        "step": step,
        "path": str(path),
        "created": manifest.created,
        "metrics": {k: _plain(v) for k, v in manifest_metrics(manifest).items()},
        "bytes": sum(f.nbytes for f in manifest.files.values()),
        "best": step == best,
    }


def _plain(value: Any) -> Any:
    # JSON has no NaN and no infinity; as text they survive every reader.
    finite = isinstance(value, int | float) and value == value and abs(value) != float("inf")
    return value if finite else str(value)


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
