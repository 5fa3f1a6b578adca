"""How much a conversion may write, measured by what it reads."""

from holdtrue.engine.stored import StoredSource
from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.limits import limits
from holdtrue.records.dtypes import OVERLAP_FACTOR


def check_expansion(where: str, sources: list[StoredSource]) -> None:
    """Raises DamageError where a few bytes would become a disk full of them.

    One tensor under two names is written twice where the format knows no ties; a small file that
    names one tensor a million times is not to be had.
    """
    pieces = (piece for source in sources for piece in source.tensor.pieces)
    backing = {(p.storage.file, p.storage.key): p.storage.nbytes for p in pieces}
    held, total = sum(backing.values()), sum(source.nbytes for source in sources)
    if total > OVERLAP_FACTOR * held + limits().expanded_bytes:
        raise fail(
            DamageError,
            where,
            Finding(
                code="tensor-expanded",
                severity="error",
                where=where,
                what="the file repeats its few bytes into too many",
                why=f"its tensors take {total:,} bytes, made of {held:,}; "
                f"{limits().expanded_bytes:,} more are allowed",
                fix="set HOLDTRUE_EXPANDED_BYTES higher if this is meant",
            ),
        )
