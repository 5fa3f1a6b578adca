"""Where the tensors of a file were, and whether that place exists here."""

from collections import Counter
from collections.abc import Iterator

from holdtrue.findings import Finding
from holdtrue.formats.view import View

_ANYWHERE = ("cpu", "meta")


def device_tags(view: View) -> Iterator[Finding]:
    """Tensors saved from an accelerator: torch.load wants the same one back, holdtrue does not."""
    tags = Counter(tensor.device for tensor in view.tensors.values())
    elsewhere = {tag: n for tag, n in sorted(tags.items()) if tag.split(":")[0] not in _ANYWHERE}
    if elsewhere:
        yield Finding(
            code="device-tags",
            severity="note",
            where=view.path,
            what="tensors were saved from " + ", ".join(f"{t} ({n})" for t, n in elsewhere.items()),
            why="torch.load puts them back there and fails where there is no such device",
            fix='torch.load(path, map_location="cpu"); holdtrue restores to wherever the target is',
        )
