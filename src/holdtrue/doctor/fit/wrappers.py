"""What wrappers put into the names of tensors, at the front and in the middle."""

import re
from collections.abc import Collection, Mapping

from msgspec import Struct

Shape = tuple[int, ...]

# Components that wrappers add, wherever in the tree they stand; no model of a user has such names.
_INSIDE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module",
                     "_forward_module"})  # fmt: skip
# What wrappers and trainers put before every name; models may have children that are called so.
_BEFORE = ("module.", "model.", "net.", "state_dict.")


class Naming(Struct, frozen=True, kw_only=True):
    """What is done to every name of a file by itself: taken out, taken off, put on."""

    inside: tuple[str, ...] = ()  # components taken out wherever they stand
    off: str = ""
    on: str = ""

    @property
    def changes(self) -> bool:
        return bool(self.inside or self.off or self.on)

    def __call__(self, name: str) -> str:
        if self.inside:
            name = ".".join(c for c in name.split(".") if c not in self.inside)
        return self.on + name.removeprefix(self.off)


PLAIN = Naming()


def namings(names: Collection[str], shapes: Mapping[str, Shape | None]) -> list[Naming]:
    """Plain, and each way of taking wrappers away or putting one on; the least first.

    Wrappers that are known come off whether or not the rest fits; any other prefix is for the
    caller to judge: see `covers`.
    """
    found = [PLAIN]
    inside = tuple(sorted({c for n in names for c in n.split(".")} & _INSIDE))
    if inside and not any(c in _INSIDE for n in shapes for c in n.split(".")):
        found.append(Naming(inside=inside))
    bare = found[-1]
    stack = ""
    cleaned = [bare(name) for name in names]
    while cleaned:
        step = next((p for p in _BEFORE if all(n.startswith(stack + p) for n in cleaned)), "")
        if not step:
            break
        stack += step
        found.append(Naming(inside=bare.inside, off=stack))
    for prefix in _shared_heads(cleaned):
        if prefix != stack and not stack.startswith(prefix):
            found.append(Naming(inside=bare.inside, off=prefix))
    for prefix in _shared_heads(shapes):
        found.append(Naming(inside=bare.inside, on=prefix))
        if stack and prefix != stack:
            found.append(Naming(inside=bare.inside, off=stack, on=prefix))
    return found


def is_known(naming: Naming) -> bool:
    """Whether only what known wrappers add is taken away."""
    rest = naming.off
    while step := next((p for p in _BEFORE if rest.startswith(p)), ""):
        rest = rest[len(step) :]
    return not rest and not naming.on


def covers(
    named: Mapping[str, Shape],
    shapes: Mapping[str, Shape | None],
    needed: Collection[tuple[str, ...]],
) -> bool:
    """Whether tensors of these names fill all that is needed, every shape equal."""
    equal = all(shapes[n] in (None, shape) for n, shape in named.items() if n in shapes)
    return equal and bool(needed) and all(any(n in named for n in group) for group in needed)


def _shared_heads(names: Collection[str]) -> list[str]:
    """What stands before every name, up to each of its dots."""
    if not names:
        return []
    first, last = min(names), max(names)
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    dots = [m.end() for m in re.finditer(r"\.", first[:shared])]
    return [first[:end] for end in dots[:8]]
