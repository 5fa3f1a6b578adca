"""holdtrue convert: a checkpoint in another format."""

import sys

import click

from holdtrue.cli.carrying import carrying_options, show
from holdtrue.doctor.kinds import Kind


@click.command(name="convert", short_help="A checkpoint in another format.")
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
    """Write checkpoint SRC, whatever its format, as DST. Nothing of it is run.

    A holdtrue checkpoint takes everything; the other formats hold one state dict, the largest or
    that of --part. What was not carried over is listed. `holdtrue.open` reads every result.

    Exit status 0: done; 1: the source is damaged, or DST cannot be written; 2: not readable.
    """
    from holdtrue.cli.progress import progress_bar
    from holdtrue.doctor.convert import convert

    with progress_bar("converting") as progress:
        made = convert(
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
