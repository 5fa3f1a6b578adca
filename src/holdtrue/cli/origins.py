"""What `inspect` says of where a checkpoint comes from, and of whether it can be built again."""

import shlex

from holdtrue.checkpoint import Checkpoint
from holdtrue.cli.render import age, counted, size
from holdtrue.records.environment import Environment
from holdtrue.records.manifest import Part
from holdtrue.records.recipe import needs, trusted_by_itself
from holdtrue.records.values import NodeError

_WAYS = {
    "buildable": "from its recorded arguments",
    "config": "from its configuration",
    "hparams": "from its hyper-parameters",
    "signature": "from its constructor's arguments",
}
_USUAL = {
    "deterministic": False,
    "cudnn_deterministic": False,
    "cudnn_benchmark": False,
    "matmul_precision": "highest",
    "cudnn_tf32": True,
    "default_dtype": "float32",
}


def origin_of_ours(checkpoint: Checkpoint, made: Environment) -> list[str]:
    """When and by what, on which machine, from which commit and command."""
    lines = [
        f"saved {age(checkpoint.created)} ago ({checkpoint.created}) by holdtrue "
        f"{made.holdtrue}, torch {made.torch}, Python {made.python}, {made.platform}"
    ]
    if checkpoint.metrics:
        metrics = ", ".join(f"{k} {v}" for k, v in checkpoint.metrics.items())
        lines.append(f"metrics {metrics}")
    machine = list(made.accelerators)
    if made.build and made.build.capability:
        machine.append(f"CPU {made.build.capability}")
    if made.threads:
        machine.append(counted(made.threads, "thread"))
    machine += [f"{k} {v}" for k, v in made.flags.items() if _USUAL.get(k, v) != v]
    if made.hostname:
        machine.append(made.hostname)
    if machine:
        lines.append("on " + ", ".join(machine))
    if made.git:
        lines.append(_commit(made))
    if made.command:
        lines.append(f"ran {_short(shlex.join(made.command))}")
    return lines


def can_be_built(part: Part) -> str:
    """One line for a module part; "" for others and for checkpoints that do not say."""
    if part.kind != "module" or part.rebuild is None:
        return ""
    recipe = part.rebuild.recipe
    if recipe is None:
        return f"cannot be built without its code: {_short(part.rebuild.reason)}"
    try:
        wanted = sorted(n for n in needs(recipe) if not trusted_by_itself(n))
    except NodeError as error:
        return f"its recipe is damaged: {error}"
    changes = len(recipe.modules) + sum(map(len, recipe.attributes.values()))
    how = _WAYS[recipe.via] + (f" and {counted(changes, 'later change')}" if changes else "")
    trusting = f", trusting {_short(', '.join(wanted))}" if wanted else ""
    return f"can be built {how}{trusting}"


def _commit(made: Environment) -> str:
    git = made.git
    assert git is not None
    facts = [f"commit {git.commit[:12]}"]
    facts.append(f"on {git.branch}" if git.branch else "on no branch")
    if git.dirty:
        kept = f", diff of {size(len(git.diff.encode()))} kept" if git.diff else ", diff not kept"
        facts.append("with changes" + kept + (" (cut)" if git.cut else ""))
    return " ".join(facts[:2]) + (f", {facts[2]}" if git.dirty else "")


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:159] + "…"
