"""Tensors of one name and two shapes: which dimension, and what it usually means."""

import re
from collections import defaultdict
from collections.abc import Iterator

from holdtrue.doctor.fit.comparison import Clash, clashes, facts, matched, unexpected
from holdtrue.doctor.fit.spellings import QUANTISED
from holdtrue.doctor.subjects import Fit
from holdtrue.findings import Finding, several
from holdtrue.records.dtypes import product

_POSITIONS = re.compile(r"(^|[._])(pos|position|positions|wpe|pos_embed|positional)\w*", re.I)
_VOCABULARY = re.compile(
    r"(^|[._])(wte|embed|embedding|embeddings|lm_head|word|token|tok)\w*", re.I
)
_KEY_VALUE = re.compile(r"(^|[._])(k|v|key|value)(_?(proj|lin|linear))?\.weight$")
_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}
_RANK = re.compile(r"(^|\.)lora_(A|B|embedding_A|embedding_B)(\.|$)")
_REWRITES = {
    "qkv-fused": ("query, key and value are one tensor in the file and three in the model",
                  "cut it into the three, along the output dimension"),
    "qkv-split": ("query, key and value are three tensors in the file and one in the model",
                  "put the three one after the other, along the output dimension"),
    "gate-up-fused": ("gate and up projection are one tensor in the file and two in the model",
                      "cut it into the two, along the output dimension, the gate first"),
    "gate-up-split": ("gate and up projection are two tensors in the file and one in the model",
                      "put them one after the other, along the output dimension, the gate first"),
    "weights-transposed": ("matrices are stored the other way round",
                           "turn them: Conv1D of GPT-2 stores [in, out], Linear [out, in]"),
    "flat-parameters": ("the parameters were flattened into one vector by FSDP",
                        "cut it into the model's parameters, in the order that the model has them"),
}  # fmt: skip


def other_layouts(fit: Fit) -> Iterator[Finding]:
    """The same numbers, stored another way."""
    for code, (what, fix) in _REWRITES.items():
        found = [r for r in fit.rewrites if r.code == code]
        if not found:
            continue
        places = [f"{', '.join(r.sources)} → {', '.join(r.made)}"[:300] for r in found]
        yield Finding(
            code=code,
            severity="error",
            where=f"{fit.part}/{next(iter(found[0].made))}",
            what=what,
            why="the shapes say so: together they have as many elements, in matching dimensions",
            fix=f'{fix}: allow=["{code}"]',
            command=fit.proposal.command if fit.proposal else "",
            confidence="likely" if all(r.sure for r in found) else "hint",
            saved=", ".join(str(list(_stored_shape(fit, s))) for s in found[0].sources[:3]),
            expected=", ".join(str(list(t.shape)) for t in list(found[0].made.values())[:3]),
            places=several(f"{fit.part}/{p}" for p in places),
        )


def shape_mismatch(fit: Fit) -> Iterator[Finding]:
    """One finding a cause: the tensors that differ for the same reason together."""
    groups: dict[tuple[str, str], list[Clash]] = defaultdict(list)
    last = _last_matrix(fit)
    packed = {n.rpartition(".")[0] for n in unexpected(fit) if QUANTISED.search(n)}
    for clash in clashes(fit):
        if clash.name in packed:  # numbers of four bits, two in a byte
            continue
        groups[_cause(clash, last)].append(clash)
    for (what, why), found in groups.items():
        places = [
            f"{fit.part}/{c.name}: saved {list(c.saved.shape)}, here {list(c.here.shape or ())}"
            for c in found
        ]
        yield Finding(
            code="shape-mismatch",
            severity="error",
            where=places[0],
            what=f"{len(found)} tensor{'s have' if len(found) > 1 else ' has'} another shape in "
            f"the model: {what}",
            why=f"{why}; {matched(fit)}",
            fix="build the model with the saved sizes, or keep its own values: "
            'allow=["shape-mismatch"]',
            command=fit.proposal.command if fit.proposal else "",
            saved=str(list(found[0].saved.shape)),
            expected=str(list(found[0].here.shape or ())),
            places=several(places),
        )


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _stored_shape(fit: Fit, name: str) -> tuple[int, ...]:
    """The shape in the file of what restore calls so."""
    known = {new: fit.state.names[old].shape for old, new in (*fit.standing.items(),
                                                              *fit.names.items())}  # fmt: skip
    return known.get(name, ())


def _last_matrix(fit: Fit) -> str:
    """The module of the last weight that is a matrix: what most models end in."""
    names = [n for n, t in facts(fit).items() if t.parameter and t.shape and len(t.shape) == 2]
    return names[-1].rpartition(".")[0] if names else ""


def _cause(clash: Clash, last: str) -> tuple[str, str]:
    saved, here = clash.saved.shape, clash.here.shape or ()
    module = clash.kind.class_name.rpartition(".")[2]
    if saved == (0,) or (product(saved) == 0 and product(here)):
        return ("an empty placeholder in the file",
                "DeepSpeed ZeRO-3 leaves placeholders in the state dict of each rank; gather the "
                "weights when saving (zero_to_fp32.py makes them of the rank files)")  # fmt: skip
    if product(saved) == 1 == product(here):
        return (
            "one element, with and without a dimension",
            "torch once put such a tensor into the other by broadcasting, without a word",
        )
    if len(saved) == 1 < len(here) and product(saved) >= product(here):
        return ("flattened in the file", "FSDP keeps parameters as one padded vector; load before "
                "wrapping, or save a full state dict")  # fmt: skip
    if _RANK.search(clash.name):
        return (
            "the LoRA rank differs",
            "lora_A has the rank as dimension 0, lora_B as dimension 1",
        )
    if module in _GATES and len(saved) == len(here) > 0:
        cell = module.endswith("Cell")
        others = [k for k in _GATES if k != module and k.endswith("Cell") is cell]
        fits = [k for k in others if saved[0] * _GATES[module] == here[0] * _GATES[k]]
        if fits and "_" in clash.name.rpartition(".")[2]:
            return (
                f"it is a layer of another kind: saved by an {fits[0]}, here a module of {module}",
                "an LSTM stacks four gates in each weight, a GRU three, an RNN has one",
            )
    if len(saved) != len(here) and _bare(saved) == _bare(here):
        return (
            "the same but for dimensions of one element",
            "a 1x1 convolution and a Linear layer compute the same: reshape the weights before "
            "they are saved, or build the model with the layer that was saved",
        )
    if len(saved) != len(here):
        return (
            f"{len(saved)} dimensions in the file, {len(here)} here",
            "it belongs to another kind of layer",
        )
    axes = [i for i, (a, b) in enumerate(zip(saved, here, strict=True)) if a != b]
    if len(here) > 2 and saved != here and saved == (*here[2:], here[1], here[0]):
        return (
            "the dimensions stand in another order (spatial, in, out)",
            "TensorFlow and Flax keep the kernels of convolutions as [height, width, in, out], "
            "torch as [out, in, height, width]: permute them before they are saved",
        )
    if axes == [1] and saved[0] == 1 == here[0] and _POSITIONS.search(clash.name):
        return (
            "the number of positions differs (dimension 1)",
            "position embeddings have a row for each position, or patch, that inputs may have: "
            "another image size or length; interpolate them, or build the model for the saved one",
        )
    if axes == [0] and _KEY_VALUE.search(clash.name):
        return (
            "the number of key and value heads differs (dimension 0)",
            "grouped-query attention has fewer heads for key and value than for query "
            "(num_key_value_heads)",
        )
    if axes == [0] and _POSITIONS.search(clash.name):
        return (
            "the number of positions differs (dimension 0)",
            "position embeddings have a row for each position, or patch, that inputs may have",
        )
    if axes == [0] and (_VOCABULARY.search(clash.name) or module.startswith("Embedding")):
        return ("the vocabulary differs (dimension 0)",
                "an embedding or output layer has a row for each token: tokens were added, or the "
                "rows were padded; resize the model to the file's tokenizer first")  # fmt: skip
    if axes == [0] and clash.name.rpartition(".")[0] == last:
        return (
            "the number of classes differs (dimension 0 of the last layer)",
            "the last layer has a row for each class",
        )
    if len(here) > 2 and axes == [1] and "Conv" in module:
        return (
            "the number of input channels differs (dimension 1)",
            "the first convolution has a slice for each channel of the input",
        )
    if len(here) > 2 and axes and axes[0] >= 2 and "Conv" in module:
        return ("the kernel size differs", "a convolution with another window")
    return (
        f"sizes differ (dimension {' and '.join(map(str, axes))})",
        "the model was built with other widths than the one that was saved",
    )
