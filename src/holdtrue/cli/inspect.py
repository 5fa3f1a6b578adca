"""holdtrue inspect: what a checkpoint holds, without loading it, whatever wrote it."""

import click


@click.command(name="inspect", short_help="What a checkpoint holds.")
@click.argument("path")
@click.option("--all", "everything", is_flag=True, help="Every tensor, however many there are.")
@click.option("--source", is_flag=True, help="The text of the model's own code.")
@click.option("--json", is_flag=True, help="Everything as JSON.")
def command(path: str, everything: bool, source: bool, json: bool) -> None:
    """What a checkpoint of any format holds: parts, tensors, values, origin, and what it would have
    run if it had been unpickled. Nothing of it is run, and torch is not needed."""
    from holdtrue.cli.contents import show_contents

    show_contents(path, everything=everything, source=source, json=json)
