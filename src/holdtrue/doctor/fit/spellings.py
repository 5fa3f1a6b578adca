"""The spellings of one name brought to one: what libraries rewrite; and how alike names are."""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

_REWRITES = (
    (re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)"
                r"(?=\.)"), r"\1"),
    (re.compile(r"^(module\.)+"), ""),
    (re.compile(r"^base_model\.model\."), ""),  # PEFT
    (re.compile(r"\.base_layer\."), "."),
    (re.compile(r"(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.default"), r"\1"),
    (re.compile(r"(^|\.)gamma$"), r"\1weight"),  # LayerNorm as TensorFlow calls it
    (re.compile(r"(^|\.)beta$"), r"\1bias"),
    (re.compile(r"(^|\.)(weight|bias)_g$"), r"\1parametrizations.\2.original0"),  # weight_norm
    (re.compile(r"(^|\.)(weight|bias)_v$"), r"\1parametrizations.\2.original1"),
    (re.compile(r"(^|\.)(weight|bias)_orig$"), r"\1parametrizations.\2.original"),  # spectral_norm
    (re.compile(r"(^|\.)(weight|bias)_u$"), r"\1parametrizations.\2.0._u"),
    (re.compile(r"(^|\.)moving_mean$"), r"\1running_mean"),  # BatchNorm as TensorFlow calls it
    (re.compile(r"(^|\.)moving_var(iance)?$"), r"\1running_var"),
)  # fmt: skip
# What stands beside, or instead of, quantised weights.
QUANTISED = re.compile(
    r"(^|\.)(_packed_params(\._packed_params|\.dtype)?|scale|zero_point|absmax|nested_absmax|"
    r"quant_map|nested_quant_map|SCB|qweight|qzeros|scales|g_idx|"
    r"(weight|input|activation|output|k|v)_scale(_inv|_2)?|scale_inv|weight_(packed|zero_point|g_idx)|"
    r"quant_state\.[\w.]+)$"
)
_PLAIN_SCALES = frozenset({"scale", "scales", "input_scale", "activation_scale", "output_scale",
                           "k_scale", "v_scale"})  # fmt: skip
_V = re.compile(r"(^|\.)(weight|bias)_v$")
_DOTS = re.compile(r"\.{2,}|^\.")
_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
# Words of the field for one thing.
_WORDS = {
    "query": "q", "key": "k", "value": "v", "attention": "attn", "embeddings": "embed",
    "embedding": "embed", "emb": "embed", "embd": "embed", "tokens": "token", "tok": "token",
    "word": "token", "wte": "token", "wpe": "position", "pos": "position", "layernorm": "norm",
    "ln": "norm", "bn": "norm", "batchnorm": "norm", "dense": "linear", "fc": "linear",
    "proj": "linear", "projection": "linear", "lin": "linear", "layers": "layer", "blocks": "layer",
    "block": "layer", "h": "layer", "enc": "encoder", "dec": "decoder", "classifier": "head",
    "mlp": "feedforward", "ffn": "feedforward", "out": "output", "o": "output", "cls": "classifier",
    "downsample": "down", "shortcut": "down", "convolution": "conv", "w": "weight", "b": "bias",
    "kernel": "weight", "backbone": "features", "intermediate": "up", "head": "head",
}  # fmt: skip


def canonical(name: str) -> str:
    """The name without what wrappers and libraries make of it."""
    for pattern, new in _REWRITES:
        name = pattern.sub(new, name)
    return _DOTS.sub(".", name).lstrip(".")


def canonical_names(names: Collection[str]) -> dict[str, str]:
    """Each name and its one spelling. What `weight_v` is, shows by what stands beside it."""
    known = set(names)
    found = {}
    for name in names:
        if _V.search(name) and f"{name[:-2]}_orig" in known:  # spectral_norm's, not weight_norm's
            found[name] = canonical(_V.sub(r"\1parametrizations.\2.0._v", name))
        else:
            found[name] = canonical(name)
    return found


def is_quantised(names: Collection[str]) -> bool:
    """Whether some names are those of quantised weights; a `scale` alone many models have."""
    found = [n.rpartition(".")[2] for n in names if QUANTISED.search(n)]
    return any(n not in _PLAIN_SCALES for n in found)


@lru_cache(100_000)
def words(name: str) -> tuple[str, ...]:
    """The words and numbers of a name, each word of the field in one spelling."""
    found = []
    for token in _TOKEN.findall(name):
        if token.isdigit():
            found.append(str(int(token)))
        elif (low := token.lower()) in _WORDS:
            found.append(_WORDS[low])
        else:
            found.append(low)
    return tuple(found)


def likeness(a: str, b: str) -> float:
    """How alike two names are, from 0 to 1: words they share, the last one counting double."""
    mine, theirs = words(a), words(b)
    if not mine or not theirs:
        return 0.0
    shared = _common(mine, theirs) + (1.0 if mine[-1] == theirs[-1] else 0.0)
    return 2 * shared / (len(mine) + len(theirs) + 2)


def _common(a: Sequence[str], b: Sequence[str]) -> float:
    """The length of the longest common subsequence; what begins alike counts half."""
    row = [0.0] * (len(b) + 1)
    for one in a:
        before = row[:]
        for at, other in enumerate(b, 1):
            row[at] = max(before[at], row[at - 1], before[at - 1] + _alike(one, other))
    return row[-1]


def _alike(one: str, other: str) -> float:
    if one == other:
        return 1.0
    short, long = sorted((one, other), key=len)
    return 0.5 if len(short) > 1 and not short.isdigit() and long.startswith(short) else 0.0
