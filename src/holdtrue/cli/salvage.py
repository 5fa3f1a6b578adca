"""holdtrue salvage: what is whole of a damaged file."""

import sys

import click

from holdtrue.cli.carrying import carrying_options, show
from holdtrue.doctor.kinds import Kind


@click.command(name="salvage", short_help="What is whole of a damaged file.")
@click.argument("src")
@click.argument("dst")
@carrying_options
def command(
    src: str,
    dst: str,
    to: Kind | None,
    part: str | None,
    shard_bytes: int | None,
    overwrite: bool,
    json: bool,
) -> None:
    """Write every tensor of SRC whose bytes are all there, and right, as DST.

    The lost ones are named, with the bytes missing. DST may be of any format that `convert` writes.

    Exit status 0: nothing was lost; 1: something was, or DST cannot be written; 2: not readable.
    """
    from holdtrue.cli.progress import progress_bar
    from holdtrue.doctor.salvage import salvage

    with progress_bar("salvaging") as progress:
        made = salvage(
            src,
            dst,
            to=to,
            part=part,
            overwrite=overwrite,
            shard_bytes=shard_bytes,
            progress=progress,
        )
    show(made, json)
    sys.exit(0 if made.report.ok else 1)
