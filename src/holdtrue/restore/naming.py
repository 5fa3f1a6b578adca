"""What a caller could write to bring the names of a file and those of a target together."""

from collections.abc import Collection, Sequence


def rename_hint(saved: Sequence[str], target: Collection[str], lacking: Collection[str]) -> str:
    """The `rename` that fills most of what is lacking by taking one prefix off, or putting one on.

    Only told, never done: with names left over it is a guess. The general form where none fills
    more names than stand as they are.
    """
    wanted, standing = set(lacking), sum(name in target for name in saved)
    best, pattern, leaves = 0, ("", ""), False
    for prefix in _heads(saved):
        inside = [n.removeprefix(prefix) for n in saved if n.startswith(prefix)]
        filled = len(wanted & set(inside))
        # What it renames stands no longer where it stood.
        lost = sum(n.startswith(prefix) and n in target for n in saved)
        if filled - lost > best:
            best, pattern = filled - lost, (f"{prefix}*", "*")
            leaves = filled < len(saved) - standing
    for prefix in _heads(list(lacking)):
        filled = sum(prefix + name in wanted for name in saved)
        if not standing and filled > best:
            best, pattern, leaves = filled, ("*", f"{prefix}*"), filled < len(saved)
    if not best:
        return 'map their names with rename={"old.*": "new.*"}, '
    allow = ', allow=["unexpected-keys"]' if leaves else ""
    old, new = pattern
    return f'rename={{"{old}": "{new}"}}{allow} would fill {best} of these, '


def _heads(names: Sequence[str]) -> list[str]:
    """Every beginning of a name up to a dot, shortest first; of names four levels deep at most."""
    heads: dict[str, None] = {}
    for depth in range(1, 5):
        for name in names:
            pieces = name.split(".", depth)
            if len(pieces) > depth:
                heads[".".join(pieces[:depth]) + "."] = None
        if len(heads) > 64:  # a deep tree: its inner names are no wrapper's prefix
            break
    return list(heads)[:64]
