"""Tensors that share memory only in part: which they are, and how their records say so."""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from holdtrue.records.dtypes import OVERLAP_FACTOR, product
from holdtrue.records.manifest import TensorRecord

Span = tuple[int, int, str]  # first element, end, tensor key


def mark_overlaps(
    records: dict[str, TensorRecord],
    spans: Iterable[list[Span]],
    strides: Mapping[str, tuple[int, ...]],
) -> None:
    """Mark the tensors of one part that touch, so that opening can lay them over one memory again.

    `spans` holds one list for each memory, `strides` those of the tensors as they lay in it.
    """
    group = 0
    for own in spans:
        if len(own) == 1:
            continue
        for run in touching(sorted(own)):
            first, end = run[0][0], max(e for _, e, _ in run)
            kept = sum(product(records[key].shape) for _, _, key in run)
            if len(run) > 1 and end - first <= OVERLAP_FACTOR * kept:
                for start, _, key in run:
                    records[key] = replace(
                        records[key], overlap=(group, start - first), stride=strides[key]
                    )
                group += 1


def touching(spans: Iterable[Span]) -> list[list[Span]]:
    """Sorted spans in groups that share elements."""
    runs: list[list[Span]] = []
    reach = -1
    for span in spans:
        if span[0] < reach:
            runs[-1].append(span)
        else:
            runs.append([span])
        reach = max(reach, span[1])
    return runs
