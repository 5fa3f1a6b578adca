"""Where the tensors of a file were, and whether that place exists here."""

from collections import Counter
from collections.abc import Iterator

from holdtrue.doctor.commands import restore_command
from holdtrue.findings import Finding
from holdtrue.formats.view import View

_ANYWHERE = ("cpu", "meta")
_MACHINES = {
    "cuda": "an NVIDIA or AMD GPU",
    "mps": "an Apple GPU",
    "npu": "an Ascend NPU (torch knows it by the package torch_npu)",
    "xla": "a TPU (torch_xla)",
    "hpu": "an Intel Gaudi (habana_frameworks.torch)",
    "xpu": "an Intel GPU",
    "mlu": "a Cambricon card (torch_mlu)",
}


def device_tags(view: View) -> Iterator[Finding]:
    """Tensors saved from an accelerator: torch.load wants the same one back, holdtrue does not."""
    tags = Counter(tensor.device for tensor in view.tensors.values())
    elsewhere = {tag: n for tag, n in sorted(tags.items()) if tag.split(":")[0] not in _ANYWHERE}
    if not elsewhere:
        return
    kinds = sorted({tag.split(":")[0] for tag in elsewhere})
    machines = " and ".join(_MACHINES.get(kind, f"a device called {kind!r}") for kind in kinds)
    yield Finding(
        code="device-tags",
        severity="note",
        where=view.path,
        what="tensors were saved from " + ", ".join(f"{t} ({n})" for t, n in elsewhere.items()),
        why=f"torch.load puts them back there and fails without {machines}"
        + ("; parts on several devices need all of them" if len(elsewhere) > 1 else ""),
        fix='torch.load(path, map_location="cpu"); restore puts them wherever the target is',
        command=restore_command(view.path),
    )
