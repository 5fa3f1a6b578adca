"""holdtrue prune: remove the checkpoints of a run that no rule keeps."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from holdtrue.records.manifest import Manifest
    from holdtrue.runs.keep import Keep


@click.command(name="prune", short_help="Remove the checkpoints that no rule keeps.")
@click.argument("run")
@click.option("--keep", "rules", required=True, metavar="RULES",
              help="What stays: last=3,best=2,by=val_loss,every=1000,within=2h")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--json", is_flag=True, help="What went, and what stays, as JSON.")
def command(run: str, rules: str, dry_run: bool, json: bool) -> None:
    """Remove the checkpoints of a run that no rule keeps.

    The newest checkpoint is read in full first, and stays when it is the last that verifies. A run
    that a training saves into right now is refused; it prunes by itself.
    """
    from holdtrue.cli.render import counted, show_json, size, stdout
    from holdtrue.formats.source import reading
    from holdtrue.runs.keep import parse_keep
    from holdtrue.runs.pruning import remove_steps
    from holdtrue.runs.writing import give_back, is_alone, take
    from holdtrue.storage.failures import not_written
    from holdtrue.storage.locating import require_steps
    from holdtrue.storage.staging_area import clear_leftovers

    try:
        keep = parse_keep(rules)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--keep") from None
    if not keep.rules:
        raise click.BadParameter("no rule: that would keep everything", param_hint="--keep")
    place = Path(run).absolute()
    require_steps(place)
    if dry_run:
        found, going = _plan(keep, place)
        gone = going
    else:
        try:
            take(place)
        except OSError as error:
            raise not_written(place, error, 0) from None
        try:
            with reading(str(place)):
                clear_leftovers(place, alone=is_alone(place))
                found, going = _plan(keep, place)
            gone = remove_steps(keep, going, found)
        finally:
            give_back(place)
    kept = [step for step in found if step not in gone]
    freed = sum(_nbytes(found[step][1]) for step in gone)
    if json:
        show_json({"dry_run": dry_run, "removed": gone, "kept": kept, "bytes": freed})
        return
    verb = "would remove" if dry_run else "removed"
    console = stdout()
    for step in gone:
        console.print(f"{verb} step {step}  {size(_nbytes(found[step][1]))}")
    stays = ", ".join(map(str, kept)) or "nothing"
    console.print(f"{verb} {counted(len(gone), 'checkpoint')}, {size(freed)}; kept: {stays}")
    console.print("(files that other checkpoints share free nothing)" if gone else "")


def _plan(keep: "Keep", run: Path) -> "tuple[dict[int, tuple[Path, Manifest | None]], list[int]]":
    from holdtrue.errors import HoldtrueError
    from holdtrue.formats.checkpoint_directory import read_manifest
    from holdtrue.runs.pruning import doomed, verifies
    from holdtrue.storage.locating import require_steps

    found: dict[int, tuple[Path, Manifest | None]] = {}
    for step, path in require_steps(run).items():
        found[step] = path, None
        with contextlib.suppress(HoldtrueError):
            found[step] = path, read_manifest(path)
    return found, doomed(keep, found, verifies)


def _nbytes(manifest: "Manifest | None") -> int:
    return sum(file.nbytes for file in manifest.files.values()) if manifest else 0
