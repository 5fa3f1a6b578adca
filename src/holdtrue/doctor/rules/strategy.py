"""What kind of file it is, where that decides how it must be loaded."""

from collections.abc import Iterator

from holdtrue.doctor.amounts import counted, size
from holdtrue.doctor.commands import convert_command, quoted, restore_command
from holdtrue.doctor.state_dicts import StateDict, nbytes, state_dicts
from holdtrue.findings import Finding, several
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import LazyTensor, View

_SHOWN = 8


def optimizer_only(view: View) -> Iterator[Finding]:
    """An optimizer's state without a model."""
    if view.about.get("kind") == "optimizer":
        yield Finding(
            code="optimizer-only",
            severity="note",
            where=view.path,
            what="the file holds the state of an optimizer and no model",
            why="it has `state` and `param_groups`, which is what optimizer.state_dict() gives",
            fix="the weights were saved elsewhere; load this with optimizer.load_state_dict",
        )


def training_checkpoint(view: View) -> Iterator[Finding]:
    """A checkpoint whose weights lie below a key of it."""
    tree = view.tree
    if view.about.get("kind") != "checkpoint" or not isinstance(tree, dict):
        return
    nested = [state for state in _weights(view) if state.path]
    if not nested:
        return
    places = tuple(
        f"{view.path}: {state.path} ({counted(len(state.names), 'tensor')}, {size(nbytes(state))})"
        for state in nested
    )
    others = [name_of(key) for key in tree if name_of(key) not in {s.path for s in nested}]
    beside = f"; beside them are {', '.join(others[:12])}" if others else ""
    key = "".join(f"[{part!r}]" for part in nested[0].path.split("/"))
    lie = ", ".join(f"`{state.path}`" for state in nested[:6]) + (", …" if len(nested) > 6 else "")
    yield Finding(
        code="training-checkpoint",
        severity="note",
        where=places[0],
        places=several(places),
        what="the weights are not at the top of the file",
        why="load_state_dict on the whole file finds no name that it knows: the weights lie at "
        f"{lie}{beside}",
        fix=f"model.load_state_dict(checkpoint{key}); restore finds the place by itself",
        command="" if any(map(_has_placeholders, nested)) else _into_model(view, nested),
    )


def lightning_checkpoint(view: View) -> Iterator[Finding]:
    """What Lightning kept beside the weights, and what it did not."""
    said = view.about.get("lightning")
    if not isinstance(said, dict):
        return
    lacks = []
    if "hyper_parameters" not in said:
        lacks.append(
            "hyper-parameters (no save_hyperparameters(): load_from_checkpoint needs every "
            "argument of the module again)"
        )
    if said.get("weights_only"):
        lacks.append("optimizer states (save_weights_only=True: training cannot go on from it)")
    where = "state_dict" if isinstance(view.tree, dict) and "state_dict" in view.tree else ""
    yield Finding(
        code="lightning-checkpoint",
        severity="note",
        where=_where(view, where),
        what=f"a checkpoint of Lightning {said.get('version')}"
        + (f" without {' and '.join(lacks)}" if lacks else ""),
        why="the weights lie at `state_dict`, under names that begin with the attribute of the "
        "LightningModule that holds the network",
        fix="trainer.fit(ckpt_path=…) or load_from_checkpoint; restore fills a plain model",
        command=restore_command(view.path),
    )


def torchscript_archive(view: View) -> Iterator[Finding]:
    """A compiled model: torch.load does not take it."""
    if view.format == "torchscript":
        yield Finding(
            code="torchscript-archive",
            severity="note",
            where=view.path,
            what="the file is a TorchScript archive: code and weights of a compiled model",
            why="torch.load(path) refuses it (`Cannot use weights_only=True with TorchScript "
            "archives`); torch.jit.load opens it, and runs the code that is in it",
            fix="takes the weights out without running the code",
            command=convert_command(view.path, ".safetensors"),
        )


def plain_pickle(view: View) -> Iterator[Finding]:
    """Written by pickle.dump: torch.load does not take it."""
    if view.format == "pickle" and view.tensors:
        yield Finding(
            code="plain-pickle",
            severity="note",
            where=view.path,
            what="the file is a plain pickle, written by pickle.dump",
            why="torch.load(path) says `Invalid magic number; corrupt file?` or `Unsupported "
            "operand`: it looks for what torch.save puts around the pickle",
            fix="keeps its tensors and values, without unpickling it",
            command=convert_command(view.path),
        )


def no_tensors(view: View) -> Iterator[Finding]:
    """Values only: there is no model in it."""
    if view.tensors or view.format in ("holdtrue", "torchscript", "pt2") or view.findings:
        return
    if view.about.get("kind") == "optimizer":
        return
    tree = view.tree
    keys = ", ".join(name_of(key) for key in list(tree)[:8]) if isinstance(tree, dict) else ""
    yield Finding(
        code="no-tensors",
        severity="note",
        where=view.path,
        what="the file holds no tensors",
        why="everything in it is plain values" + (f": {keys}" if keys else ""),
        fix="the weights were saved elsewhere, or not at all: torch.save(model.state_dict(), PATH)",
    )


def names_absent(view: View) -> Iterator[Finding]:
    """A list of tensors: which is which is known by their order only."""
    tree = view.tree
    if view.format.startswith("np") or not isinstance(tree, (list, tuple)) or len(tree) < 2:
        return
    if all(isinstance(value, LazyTensor) for value in tree):
        yield Finding(
            code="names-absent",
            severity="note",
            where=view.path,
            what="the tensors in the file have no names",
            why=f"it is a {type(tree).__name__} of {len(tree):,} tensors, as "
            "list(model.parameters()) gives; buffers are not among them",
            fix="go by the order, shape by shape, if the model is still the same; save "
            "model.state_dict() instead",
        )


def ema_and_raw(view: View) -> Iterator[Finding]:
    """Two sets of weights for one model, of which one is a moving average."""
    states = _weights(view)
    averaged = [s for s in states if _is_average(s.path)]
    for ema in averaged:
        raw = next((s for s in states if s not in averaged and _alike(s, ema)), None)
        if raw is None:
            continue
        yield Finding(
            code="ema-and-raw",
            severity="note",
            where=_where(view, ema.path),
            places=(_where(view, raw.path), _where(view, ema.path)),
            what="the file holds two sets of weights for one model: trained and averaged ones",
            why=f"`{ema.path}` has the names and shapes of `{raw.path}`; averaged weights are for "
            "evaluation, and training goes on from the others; loaded, they look the same",
            fix="say which: the line loads the average",
            command=restore_command(
                view.path, f'model=model, source={{"model": {quoted(ema.path)}}}'
            ),
            confidence="likely",
        )
        return


def _weights(view: View) -> list[StateDict]:
    """State dicts that are weights: those of an optimizer are not among them."""
    if view.format == "holdtrue":
        return []
    return [s for s in state_dicts(view) if not _in_optimizer(s.path)]


def _has_placeholders(state: StateDict) -> bool:
    """Shapes without values, as ZeRO-3 leaves them: no model can be filled from these."""
    return 2 * sum(t.shape == (0,) for t in state.names.values()) > len(state.names)


def _into_model(view: View, nested: list[StateDict]) -> str:
    return restore_command(view.path, _choice(nested))


def _choice(states: list[StateDict]) -> str:
    """The arguments that fill a model from the first, where others could be meant as well."""
    if any(_alike(state, states[0]) for state in states[1:]):
        return f'model=model, source={{"model": {quoted(states[0].path)}}}'
    return "model=model"


def _in_optimizer(path: str) -> bool:
    return any("optim" in part or part in ("state", "grads") for part in path.lower().split("/"))


def _is_average(path: str) -> bool:
    last = path.lower()
    return any(word in last for word in ("ema", "average", "swa", "shadow", "teacher"))


def _alike(one: StateDict, other: StateDict) -> bool:
    def shapes(state: StateDict) -> dict[str, tuple[int, ...]]:
        return {n.removeprefix("module."): t.shape for n, t in state.names.items()}

    a, b = shapes(one), shapes(other)
    same = sum(b.get(name) == shape for name, shape in a.items())
    return bool(a) and 2 * same > max(len(a), len(b))


def _where(view: View, path: str) -> str:
    return f"{view.path}: {path}" if path else view.path
