"""holdtrue diff: what differs between two checkpoints."""

import sys

import click


@click.command(name="diff", short_help="What differs between two checkpoints.")
@click.argument("a")
@click.argument("b")
@click.option("--all", "everything", is_flag=True, help="Every tensor and value, none gathered.")
@click.option("--json", is_flag=True, help="Everything as JSON.")
def command(a: str, b: str, everything: bool, json: bool) -> None:
    """What differs between two checkpoints of any two formats: tensors by content, values, names.

    Exit status 0: they hold the same; 1: they differ; 2: they could not be compared.
    """
    from holdtrue.cli.differences import show_difference

    sys.exit(show_difference(a, b, everything=everything, json=json))
