"""What a user must be told, by meaning, and the codes of the doctor that mean it.

Cases name meanings. Codes stand together only where they say the same thing at other formats or
from another side; a code that is merely true of the file too is not listed.
"""

_ZIP = (
    "zip-no-directory", "zip-bad-offset", "zip-header-mismatch", "zip-record-cut",
    "zip-record-short", "zip-unreadable-record", "zip-directory-count", "zip-overlap",
    "compressed-data-damaged", "crc-mismatch",
)  # fmt: skip
_PICKLE = ("pickle-malformed", "pickle-truncated", "frame-too-long", "odd-arguments")
_STORAGES = (
    "storage-missing", "storage-size-mismatch", "tensor-past-storage", "legacy-storages",
    "legacy-truncated", "file-truncated", "bytes-missing", "zeros-in-weights", "nothing-whole",
)  # fmt: skip

_CODES: dict[str, tuple[str, ...]] = {
    # Not all of the file is what was written.
    "damage": (*_ZIP, *_PICKLE, *_STORAGES, "file-zeroed", "safetensors-header-damaged"),
    "lost-page": ("zeros-in-weights", "crc-mismatch"),
    "half-name": ("half-written",),
    # What the file is.
    "torchscript": ("torchscript-archive",),
    "optimizer-alone": ("optimizer-only",),
    "adapter-alone": ("adapter-only",),
    "dcp-file-alone": ("shard-alone",),
    "zero-placeholders": ("empty-placeholders",),
    "weights-only": ("weights-only-refuses",),
    "attributes-missing": ("attribute-missing",),
    "dcp-unfinished": ("save-unfinished", "dcp-metadata-damaged"),
    "waste": ("storage-waste",),
    "larger-than-weights": ("more-than-weights",),
    "pointer-dangling": ("latest-dangling",),
    # File against model.
    "prefix": ("prefix-removed", "prefix-added"),
    "names": ("names-differ",),
    "flat": ("flat-parameters",),
    "transposed": ("weights-transposed",),
    "qkv": ("qkv-fused", "qkv-split"),
    "quantised": ("quantisation-differs", "quantised-state"),
    "buffers": ("buffers-kept", "missing-keys", "unexpected-keys"),
    "ambiguous": ("state-dict-ambiguous",),
    "beyond-range": ("values-out-of-range", "beyond-float16"),
    "training-mode": ("saved-in-train-mode",),
    "unregistered": ("modules-unregistered", "tensor-unregistered"),
    "raw-and-ema": ("ema-and-raw",),
    # Values.
    "nan": ("weights-not-finite", "value-not-finite"),
    "infinite": ("weights-not-finite", "value-not-finite"),
    "all-zero": ("weights-all-zero",),
    "constant": ("weights-constant",),
    "denormal": ("weights-denormal",),
    "batchnorm": ("batchnorm-variance", "batchnorm-variance-zero"),
    "lora-zero": ("lora-without-effect",),
    "embedding-rows": ("embedding-rows-untrained",),
    "moments": ("moments-negative", "moments-not-finite", "moments-exploded"),
    "equal-models": ("best-equals-last", "average-equals-raw"),
    # Optimizer and schedule.
    "optimizer-parameters": (
        "optimizer-params-missing", "optimizer-params-unexpected", "optimizer-groups-changed",
    ),
    "optimizer-of-another-model": ("optimizer-other-model",),
    "optimizer-order": ("optimizer-order-changed",),
    "optimizer-class": ("class-changed",),
    "optimizer-dead": ("optimizer-dead-parameters",),
    "optimizer-absent": ("part-missing",),
    "scheduler-class": ("class-changed",),
    "scheduler-absent": ("part-missing",),
    "scaler-absent": ("scaler-missing", "part-missing"),
    "learning-rate": ("learning-rate-differs",),
    "steps-differ": ("optimizer-steps-differ",),
    "counters": ("step-counts-differ",),
}  # fmt: skip


def codes_for(meaning: str) -> tuple[str, ...]:
    """The codes with a meaning; one that has no row is a code itself."""
    return _CODES.get(meaning, (meaning,))
