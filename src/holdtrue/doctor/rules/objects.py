"""Pickled modules and other objects: what they are, and what today's classes make of them."""

from collections.abc import Iterator

from holdtrue.doctor.commands import convert_command, restore_command
from holdtrue.doctor.importable import distribution_of, findable, installed_version
from holdtrue.doctor.installed_source import class_of
from holdtrue.findings import Finding, several
from holdtrue.formats.module_tree import find_modules, module_nodes
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import View
from holdtrue.records.inert import Record

_SHOWN = 8


def whole_model(view: View) -> Iterator[Finding]:
    """A pickled torch.nn.Module instead of its state dict."""
    if view.format not in ("torch-zip", "torch-legacy", "torch-tar", "pickle"):
        return
    models = find_modules(view.tree, view.path)
    if not models:
        return
    path, model = next(iter(models.items()))
    classes = sorted({node.class_name for node in module_nodes(model, view.path)})
    foreign = [name for name in classes if not name.startswith("torch.nn.")]
    shown = ", ".join(foreign[:_SHOWN]) or "torch's own modules only"
    yield Finding(
        code="whole-model",
        severity="note",
        where=_where(view, path),
        places=several(_where(view, p) for p in models),
        what=("a whole model is" if not path else "whole modules are")
        + f" pickled in the file: {model.class_name}",
        why="torch.save(model) stores the object and the names of its classes, not their code: "
        "load_state_dict does not take it, torch.load(path) refuses it, and it opens only where "
        f"each class can be imported ({shown}{_versions(foreign)})",
        fix="keeps its weights under their names; build the model in code and restore into it: "
        + restore_command(view.path),
        command=convert_command(view.path),
    )


def attribute_missing(view: View) -> Iterator[Finding]:
    """Pickled modules that lack what today's class sets: it was changed since they were saved."""
    if view.format not in ("torch-zip", "torch-legacy", "torch-tar", "pickle"):
        return
    lacking: dict[tuple[str, str, bool], list[str]] = {}
    for path, model in find_modules(view.tree, view.path).items():
        for node in module_nodes(model, view.path):
            today = class_of(node.class_name)
            has = {*node.attributes, *node.parameters, *node.buffers, *node.children, "training"}
            for name in sorted((today.sets if today else frozenset()) - has):
                place = "/".join(part for part in (path, node.path) if part)
                filled = today is not None and name in today.fills
                lacking.setdefault((node.class_name, name, filled), []).append(place)
    for (cls, name, filled), paths in lacking.items():
        places = tuple(f"{_where(view, path)}: {name}" for path in paths)
        yield Finding(
            code="attribute-missing",
            severity="note" if filled else "warning",
            where=places[0],
            places=several(places),
            what=f"a pickled {cls.rpartition('.')[2]} has no `{name}`, which its class sets today",
            why="the class was changed since the model was pickled, and pickle does not run "
            "__init__"
            + (
                "; its __setstate__ fills it in"
                if filled
                else f": using it ends in AttributeError: no attribute {name!r}"
            ),
            fix="build the model in code, and load the weights only",
            command=restore_command(view.path),
        )


def object_in_file(view: View) -> Iterator[Finding]:
    """Objects of classes that are found here, pickled beside the weights."""
    if view.about.get("kind") in ("module", "object") or not view.about.get("would_run"):
        return
    tree = view.tree
    objects: list[tuple[str, Record]] = []
    if isinstance(tree, dict):
        models = find_modules(tree, view.path)
        objects = [
            (name_of(key), value)
            for key, value in tree.items()
            if isinstance(value, Record) and name_of(key) not in models
        ]
    named = {op.name for op in view.about["would_run"] if op.severity != "dangerous"}
    held = [
        (p, o)
        for p, o in objects
        if o.class_name in named and findable(o.class_name) in ("here", "beside")
    ]
    if held:
        places = tuple(f"{_where(view, path)}: {one.class_name}" for path, one in held)
        yield Finding(
            code="object-in-file",
            severity="note",
            where=places[0],
            places=several(places),
            what="objects are pickled beside the weights",
            why="the file opens only where their classes can be imported as they were",
            fix="keep plain values in checkpoints; the line keeps them as records",
            command=convert_command(view.path),
        )


def _versions(classes: list[str]) -> str:
    """The installed versions of the packages that the classes are from."""
    tops = sorted({name.partition(".")[0] for name in classes if findable(name) == "here"})
    found = [(top, installed_version(distribution_of(top) or top)) for top in tops[:4]]
    here = [f"{top} {number}" for top, number in found if number]
    local = sorted({name.partition(".")[0] for name in classes if findable(name) == "beside"})
    said = f"; here are {', '.join(here)}" if here else ""
    return said + (f"; {', '.join(local)} only from the current directory" if local else "")


def _where(view: View, path: str) -> str:
    return f"{view.path}: {path}" if path else view.path
