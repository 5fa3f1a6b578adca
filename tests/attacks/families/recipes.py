"""Recipes by which a model would be built: a file names classes, functions and their arguments."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from torch import nn

import holdtrue
from attacks.attack import Attack, add, refused
from holdtrue.records.manifest import decode_manifest, encode_manifest
from holdtrue.records.recipe import Rebuild, Recipe

FAMILY = "recipe"

OWN = "attack_package"


@cache
def honest() -> dict[str, bytes]:
    """The files of a checkpoint of a Linear."""
    with TemporaryDirectory() as folder:
        holdtrue.save(Path(folder) / "kept", model=nn.Linear(2, 2))
        files = (Path(folder) / "kept").iterdir()
        return {path.name: path.read_bytes() for path in files if path.is_file()}


def forged(place: Path, node: Any, **more: Any) -> Path:
    """A checkpoint of a Linear whose recipe has been exchanged, sealed as the format wants it."""
    place.mkdir(exist_ok=True)
    for name, data in honest().items():
        (place / name).write_bytes(data)
    manifest = decode_manifest(honest()["manifest.json"], "")
    recipe = Recipe(via="signature", node=node, **more)
    part = msgspec.structs.replace(manifest.parts["model"], rebuild=Rebuild(recipe=recipe))
    manifest = msgspec.structs.replace(manifest, parts={**manifest.parts, "model": part})
    (place / "manifest.json").write_bytes(encode_manifest(manifest))
    return place


def build(name: str, *args: Any, **kwargs: Any) -> Any:
    return {"$": "build", "v": {"class": name, "args": list(args), "kwargs": kwargs}}


LINEAR = build("torch.nn.modules.linear.Linear", 2, 2)
TOUCH = "touch $HOLDTRUE_CANARY"

# What a forged recipe names as a module → the finding, when the package is trusted
CALLS = {
    "os.system": (build("os.system", TOUCH), "class-not-trusted"),
    "posix.system": (build("posix.system", TOUCH), "class-not-trusted"),
    "builtins.eval": (build("builtins.eval", "open('x', 'w')"), "class-not-trusted"),
    "builtins.exec": (build("builtins.exec", "import this"), "class-not-trusted"),
    "subprocess.Popen": (build("subprocess.Popen", ["touch", "x"]), "class-not-trusted"),
    "torch.load": (build("torch.load", "x"), "class-not-trusted"),
    "torch.hub.load": (build("torch.hub.load", "x"), "class-not-trusted"),
    "a class with a side effect in __init__": (build(f"{OWN}.Plain"), "class-not-a-module"),
    "a class with a metaclass": (build(f"{OWN}.WithMeta"), "class-not-a-module"),
    "a property": (build(f"{OWN}.Holder.touched"), "class-not-trusted"),
    "a factory": (build(f"{OWN}.Holder.factory"), "class-not-trusted"),
    "__class_getitem__": (build(f"{OWN}.Item[1]"), "class-missing"),
    "__getattr__ of a module": (build(f"{OWN}.absent"), "class-missing"),
    "__getattr__ of an instance": (build(f"{OWN}.lurking.Linear"), "class-missing"),
    "an instance that claims to be a class": (build(f"{OWN}.lurking"), "class-not-trusted"),
    "a function as a module": (build(f"{OWN}.function"), "class-not-trusted"),
    "a module not yet imported": (build("attack_at_import.Net"), "class-missing"),
    "a submodule not yet imported": (build(f"{OWN}.sub.Net"), "class-missing"),
    "nothing": (build(""), "class-missing"),
    "dots": (build("..."), "class-missing"),
    "a module of torch.nn that is no layer": (
        build("torch.nn.modules.module._IncompatibleKeys"), "class-not-trusted"),
}  # fmt: skip

ARGUMENTS = {
    "os.system as an activation": ({"$": "function", "v": "os.system"}, "class-not-trusted"),
    "what a trusted module imported": (
        {"$": "function", "v": f"{OWN}.system"}, "class-not-trusted"),
    "eval as an activation": ({"$": "function", "v": "builtins.eval"}, "class-not-trusted"),
    "torch.load as an activation": ({"$": "function", "v": "torch.load"}, "class-not-trusted"),
    "a helper of torch.nn.functional": (
        {"$": "function", "v": "torch.nn.functional.handle_torch_function"}, "class-not-trusted"),
    "a module of torch.nn.functional": (
        {"$": "function", "v": "torch.nn.functional.warnings"}, "class-not-trusted"),
    "a partial of os.system": (
        {"$": "partial", "v": {"of": {"$": "function", "v": "os.system"}, "args": [TOUCH],
                               "kwargs": {}}}, "class-not-trusted"),
    "an object of a class that nobody trusts": (
        {"$": "object", "class": "pathlib.Path", "via": "dict", "state": {}}, "class-not-trusted"),
    "a class that nobody trusts": ({"$": "class", "v": "subprocess.Popen"}, "class-not-trusted"),
    "a configuration that is none": (
        {"$": "config", "v": {"class": f"{OWN}.Plain", "values": {}}}, "class-not-a-module"),
    "a callable node": ({"$": "callable", "v": "os.system"}, "class-not-trusted"),
    "a partial of no function": (
        {"$": "partial", "v": {"of": 3, "args": [], "kwargs": {}}}, "recipe-damaged"),
    "an unknown kind": ({"$": "call", "v": "os.system"}, "recipe-damaged"),
    "a tensor of the checkpoint": ({"$": "tensor", "v": "model/weight"}, "recipe-damaged"),
    "a reference to nothing": ({"$": "build"}, "recipe-damaged"),
    "a shape that cannot be": (
        {"$": "empty", "v": {"dtype": "float32", "shape": [1 << 50, 1 << 50]}}, "recipe-damaged"),
    "a dtype that is none": ({"$": "empty", "v": {"dtype": "load", "shape": [1]}},
                             "recipe-damaged"),
    "an inline tensor that is too short": (
        {"$": "inline", "v": {"dtype": "float32", "shape": [9], "data": ""}}, "recipe-damaged"),
    "base64 that is none": (
        {"$": "inline", "v": {"dtype": "float32", "shape": [1], "data": "?"}}, "recipe-damaged"),
}  # fmt: skip


def _making(node: Any) -> Callable[[Path], Path]:
    return lambda folder: forged(folder / "forged", node)


for _name, (_node, _code) in CALLS.items():
    add(Attack(f"module: {_name}", FAMILY, "to have it called as a module's class",
               refused(_code, at="build"), _making(_node)))  # fmt: skip
for _name, (_node, _code) in ARGUMENTS.items():
    add(Attack(f"argument: {_name}", FAMILY, "to have it called or made as an argument",
               refused(_code, at="build"), _making(build(f"{OWN}.Holder", _node))))  # fmt: skip
