"""The same cases, given to what users have today.

The rule, the same for all: a tool is given the path, as a user would give it, and the model and the
optimizer where the case has them. All that it says (its error, or its report, and its warnings) is
one text. The tool "names the cause" if the text contains the case's words for the cause, and "names
the fix" if it contains those for the fix; any wording that a reader could act on is in these
patterns. Nothing is executed for a peer: naming a fix is enough. Where it says nothing it is
silent, whatever it loaded.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from benchmarks.diagnosis.broken import Broken

TOOLS = ("torch and safetensors", "picklescan", "ckptkit")
_TEXT = 20_000


def asked(broken: Broken) -> dict[str, dict[str, Any]]:
    """Tool → what it said, and whether that names the cause and the fix."""
    answers: dict[str, dict[str, Any]] = {}
    for tool, ask in zip(TOOLS, (_loaders, _picklescan, _ckptkit), strict=True):
        try:
            said = ask(broken)[:_TEXT]
        except ModuleNotFoundError as error:
            answers[tool] = {"absent": f"{error.name} is not installed"}
            continue
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:_TEXT]
        answers[tool] = {
            "said": re.sub(r'File ".*/', 'File "', said)[:300],
            "cause": _matches(broken.cause, said),
            "fix": _matches(broken.cure, said),
            "silent": not said.strip(),
        }
    return answers


def _matches(pattern: str, said: str) -> bool:
    return bool(said.strip()) and bool(re.search(pattern, said, re.IGNORECASE))


def _loaders(broken: Broken) -> str:
    """torch.load or safetensors, then load_state_dict of everything, then one step."""
    lines: list[str] = []

    def attempt(action: Callable[[], Any]) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return action()
            except Exception as error:
                lines.append(f"{type(error).__name__}: {error}")
                return None
            finally:
                lines.extend(str(w.message) for w in caught)

    try:
        targets = deepcopy(dict(broken.targets))
    except RuntimeError:  # old weight_norm modules cannot be copied
        targets = dict(broken.targets)
    found = [attempt(load) for load in _opened(broken.path)]
    value = found[0] if len(found) == 1 else _merged(found)
    model, optimizer = targets.get("model"), targets.get("optimizer")
    if value is not None and model is not None:
        attempt(lambda: model.load_state_dict(value))
        if lines:  # a user takes the nested state dict out where one is plainly there
            inner = [
                v
                for v in _values(value)
                if isinstance(v, Mapping) and set(v) & set(model.state_dict())
            ]
            for nested in inner[:1]:
                attempt(lambda nested=nested: model.load_state_dict(nested))
    if value is not None and optimizer is not None:
        states = [v for v in _values(value) if isinstance(v, Mapping) and "param_groups" in v]
        if not states:
            lines.append("KeyError: 'optimizer'")
        for kept in states[:1]:
            attempt(lambda kept=kept: _loaded_and_stepped(optimizer, kept))
    if isinstance(value, Mapping) and targets.get("scheduler") is not None:
        schedules = [v for v in value.values() if isinstance(v, Mapping) and "last_epoch" in v]
        if not schedules:
            lines.append("KeyError: 'scheduler'")
        for kept in schedules[:1]:
            attempt(lambda kept=kept: targets["scheduler"].load_state_dict(kept))
    return "\n".join(lines)


def _loaded_and_stepped(optimizer: Any, kept: Any) -> None:
    optimizer.load_state_dict(kept)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def _values(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _merged(found: list[Any]) -> Any:
    """Shards are one state dict."""
    return {k: v for part in found if isinstance(part, Mapping) for k, v in part.items()} or None


def _opened(path: Path) -> Iterator[Callable[[], Any]]:
    from safetensors.torch import load_file

    if path.is_dir():
        indexes = [*path.glob("*.index.json")]
        if indexes:
            yield from _opened(indexes[0])
        elif (path / ".metadata").exists() or [*path.glob("*.distcp")]:
            yield lambda: _distributed(path)
        else:
            files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix != ".json")
            if not files:
                yield lambda: torch.load(path)
            for file in files:
                yield from _opened(file)
    elif path.name.endswith(".index.json"):
        try:
            names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except ValueError:
            yield lambda: json.loads(path.read_text())
            return
        for name in names:
            yield lambda name=name: load_file(path.parent / name)
    elif path.suffix == ".safetensors":
        yield lambda: load_file(path)
    elif path.suffix in (".npz", ".npy"):
        import numpy as np

        yield lambda: np.load(path)
    else:
        yield lambda: torch.load(path)


def _distributed(path: Path) -> Any:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    target = path.parent / "out-of-dcp.pt"
    try:
        dcp_to_torch_save(path, target)
    except CheckpointException as error:  # a BaseException
        raise RuntimeError(str(error)) from error
    return torch.load(target, weights_only=False)  # what was just written here


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _picklescan(broken: Broken) -> str:
    from picklescan.scanner import scan_file_path

    lines = []
    for path in _files(broken.path):
        result = scan_file_path(str(path))
        if result.scan_err:
            lines.append(f"{path.name}: scan error")
        for found in result.globals:
            if found.safety.value != "innocuous":
                lines.append(f"{path.name}: {found.safety.value} {found.module}.{found.name}")
    return "\n".join(lines)


def _ckptkit(broken: Broken) -> str:
    from ckptkit.validate import validate

    lines = []
    for path in _files(broken.path):
        result = validate(path)
        lines += [f"{path.name}: {issue.severity}: {issue.message}" for issue in result.issues]
    return "\n".join(lines)
