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

    Exit status 0: sealed; 1: not sealed, and why; 2: it could not be read.
    """
    from holdtrue.cli.render import stdout
    from holdtrue.sealing import seal
    from holdtrue.storage.locating import steps

    for place in [str(p) for p in steps(Path(path)).values()] or [path]:
        made = seal(place, key=key, overwrite=overwrite)
        stdout().print(f"{made.parent}: sealed" + ("" if key else ", and signed by nobody"))
