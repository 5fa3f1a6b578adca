"""A difference as plain text."""

from holdtrue.doctor.diff import Described, Difference, TensorChange


def render(found: Difference) -> str:
    """Everything that differs, a line each, worst first."""
    lines = [f"{found.a} ({found.formats[0]}) against {found.b} ({found.formats[1]})"]
    if found.mapping is not None:
        lines.append(f"names compared by the prefix {found.mapping}")
    lines += [f"changed  {told(row)}" for row in worst_first(found.changed)]
    lines += [f"removed  {row.name}  {described(row.tensor)}" for row in found.removed]
    lines += [f"added    {row.name}  {described(row.tensor)}" for row in found.added]
    lines += [renamed(row.a, row.b) for row in found.renamed]
    for value in found.values:
        more = f"  ({value.count:,} values)" if value.count > 1 else ""
        sides = " → ".join(side for side in (value.a, value.b) if side is not None)
        lines.append(f"{value.kind:<8} {value.path or '(the top)'}  {sides}{more}")
    lines += [f"note     {note}" for note in found.notes]
    return "\n".join([*lines, summary(found)])


def summary(found: Difference) -> str:
    """One line of counts."""
    counts = [
        ("changed", len(found.changed)),
        ("removed", len(found.removed)),
        ("added", len(found.added)),
        ("renamed", len(found.renamed)),
    ]
    parts = [f"{count:,} {word}" for word, count in counts if count]
    tensors = ", ".join([*parts, f"{found.equal_tensors:,} equal"])
    line = (
        f"tensors: {tensors} · values: {len(found.values):,} differ, {found.equal_values:,} equal"
    )
    if found.equal_by_digest:
        line += f" · {found.equal_by_digest:,} tensors told equal by their digests, not read"
    return ("equal · " if found.equal else "") + line


def worst_first(rows: tuple[TensorChange, ...]) -> list[TensorChange]:
    """Other shapes first, then other counts of NaN, then by the mean relative difference: its
    maximum is 1 or 2 wherever a number is nearly zero, and says little."""
    return sorted(rows, key=_badness, reverse=True)


def _badness(row: TensorChange) -> tuple[float, ...]:
    if row.numbers is None:
        return (2, 0, 0)
    numbers = row.numbers
    return (
        1 if numbers.nan_a != numbers.nan_b else 0,
        numbers.mean_rel or 0.0,
        numbers.max_abs or 0.0,
    )


def described(tensor: Described) -> str:
    layout = "" if tensor.layout == "strided" else f" {tensor.layout}"
    return f"{tensor.dtype} {list(tensor.shape)}{layout}"


def told(row: TensorChange) -> str:
    same = row.a == row.b
    kind = described(row.a) if same else f"{described(row.a)} → {described(row.b)}"
    return "  ".join([row.name or "(the top)", kind, *figures(row)])


def figures(row: TensorChange) -> list[str]:
    numbers = row.numbers
    if numbers is None:
        return []
    parts = [f"{numbers.differing:,} of {numbers.elements:,} differ"]
    for label, value in (
        ("max", numbers.max_abs), ("mean", numbers.mean_abs), ("max rel", numbers.max_rel),
        ("mean rel", numbers.mean_rel), ("cosine", numbers.cosine),
    ):  # fmt: skip
        if value is not None:
            parts.append(f"{label} {value:.3g}" if label != "cosine" else f"{label} {value:.6g}")
    if numbers.nan_a or numbers.nan_b:
        parts.append(f"NaN {numbers.nan_a:,} → {numbers.nan_b:,}")
    return parts


def renamed(a: tuple[str, ...], b: tuple[str, ...]) -> str:
    if len(a) == len(b) == 1:
        return f"renamed  {a[0]} → {b[0]}"
    return f"renamed  one of {_names(a)} → {_names(b)}  ambiguous: all have one content"


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4:,} more"
