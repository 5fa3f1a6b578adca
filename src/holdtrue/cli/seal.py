"""holdtrue seal: the SHA-256 of every file of a checkpoint, signed."""

from pathlib import Path

import click


@click.command(name="seal", short_help="Write, and sign, the SHA-256 of every file.")
@click.argument("path")
@click.option("--key", metavar="KEY", help="PEM file of the private key that signs it.")
@click.option("--overwrite", is_flag=True, help="Replace a seal that is there.")
def command(path: str, key: str | None, overwrite: bool) -> None:
    """Seal a checkpoint, or every checkpoint of a run: model.sig, in the OpenSSF layout.

    `holdtrue verify PATH --sealed-by KEY` checks it. Without --key nobody signs it: it then tells
    accidents, and not attackers. What is damaged is not sealed.

    Of a run, one that cannot be sealed keeps no other from it.

    Exit status 0: sealed; 1: not sealed, and why; 2: it could not be read.
    """
    from holdtrue.cli.render import stdout
    from holdtrue.errors import HoldtrueError
    from holdtrue.findings import report
    from holdtrue.sealing import seal
    from holdtrue.storage.locating import steps

    failed: list[HoldtrueError] = []
    for place in [str(p) for p in steps(Path(path)).values()] or [path]:
        try:
            made = seal(place, key=key, overwrite=overwrite)
        except HoldtrueError as error:
            failed.append(error)
            continue
        stdout().print(f"{made.parent}: sealed" + ("" if key else ", and signed by nobody"))
    if failed:
        raise type(failed[0])(report(path, [f for e in failed for f in e.report.findings]))
