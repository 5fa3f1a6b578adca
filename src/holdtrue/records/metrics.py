"""The metrics that were given to a save."""

from typing import Any

from holdtrue.records.manifest import Manifest, Summary
from holdtrue.records.values import Decoding, NodeError, decode


def manifest_metrics(manifest: Manifest | Summary) -> dict[str, Any]:
    """Name → what was given; empty where there are none, or what is there is no dict."""
    try:
        value = decode(manifest.metrics, Decoding(tensor=_no_tensor))
    except NodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _no_tensor(key: str) -> Any:
    raise NodeError(f"a metric holds the tensor {key!r}")
