"""Numbers of things and of bytes, as people read them."""


def counted(number: int, what: str) -> str:
    """1 tensor, 2 tensors, 1,234 tensors"""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(nbytes: int) -> str:
    """12.3 MiB"""
    value, units = float(nbytes), ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if value < 1024 or unit == units[-1]:
            return f"{nbytes} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")
