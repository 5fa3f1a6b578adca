"""What must hold after a mend, as data for the cases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.diagnosis.broken import Mended


def holds(truth: Mapping[str, torch.Tensor], *, but: str = "") -> Mended:
    """The model holds these values, bit for bit; `but` names what keeps its own."""
    wanted = {n: t.clone() for n, t in truth.items() if not (but and but in n)}

    def check(seen: Mapping[str, Any]) -> bool:
        here = seen["model"].state_dict()
        return bool(wanted) and all(n in here and equal(here[n], t) for n, t in wanted.items())

    return Mended(check)


def written(truth: Mapping[str, torch.Tensor], *, least: int | None = None) -> Mended:
    """The file that the command wrote holds these tensors under (the end of) these names.

    With `least`, at least that many of them, and none with other values.
    """
    wanted = {n: t.detach().clone() for n, t in truth.items()}

    def check(seen: Mapping[str, Any]) -> bool:
        held = tensors_of(Path(seen["written"]))
        found = 0
        for name, tensor in wanted.items():
            ends = [t for n, t in held.items() if _same_name(n, name)]
            if ends and not any(equal(t, tensor) for t in ends):
                return False
            found += bool(ends)
        return found >= (len(wanted) if least is None else least)

    return Mended(check)


def kept(truth: Mapping[str, torch.Tensor]) -> Mended:
    """The values are in the model, or in the file that the command wrote: either is a mend."""
    in_model, in_file = holds(truth), written(truth)

    def check(seen: Mapping[str, Any]) -> bool:
        return in_file.check(seen) if "written" in seen else in_model.check(seen)

    return Mended(check)


def _same_name(path: str, name: str) -> bool:
    path, name = path.replace("/", "."), name.replace("/", ".")
    return path == name or path.endswith(f".{name}")


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that was written as a mend, read by the format's own library."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.is_dir():
        found: dict[str, torch.Tensor] = {}
        for file in sorted(path.glob("*.safetensors")):
            found |= tensors_of(file)
        return found
    return dict(_leaves(torch.load(path, weights_only=True, map_location="cpu"), ""))


def _leaves(value: Any, path: str) -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(path, value)]
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    return [leaf for k, v in items for leaf in _leaves(v, f"{path}.{k}" if path else str(k))]


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same shape, dtype and values; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
