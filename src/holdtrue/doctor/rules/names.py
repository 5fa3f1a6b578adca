"""State dicts whose names and shapes say that they are no plain model's."""

import re
from collections.abc import Callable, Iterator

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.commands import restore_command
from holdtrue.doctor.state_dicts import StateDict, state_dicts
from holdtrue.findings import Finding, several
from holdtrue.formats.tree_walk import name_of
from holdtrue.formats.view import LazyTensor, View

_ADAPTER = re.compile(
    r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|lora_(up|down)|hada_w[12]_[ab]"
    r"|lokr_w[12](_[ab])?|ia3_l|prompt_embeddings|prompt_encoder|oft_[rR]|vera_lambda_[bd]"
    r"|adapter_(down|up)|boft_[RS])(\.|$)"
)
_QUANTISED = re.compile(
    r"(^|\.)(_packed_params(\._packed_params)?|absmax|quant_map|nested_absmax|nested_quant_map"
    r"|quant_state\.[\w.]+|qweight|qzeros|g_idx|SCB|weight_format|zero_point|weight_scale(_inv)?"
    r"|weight_zero_point|weight_packed)$"
)
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")
_ZERO_PIECE = frozenset({
    "single_partition_of_fp32_groups", "fp32_flat_groups", "partition_count", "zero_stage",
    "base_optimizer_state",
})  # fmt: skip


def adapter_only(view: View) -> Iterator[Finding]:
    """LoRA and its kin, without the model that they adapt."""
    for state, names in _with(view, _ADAPTER.search):
        if 2 * len(names) > len(state.names):
            yield _found(
                view, state, names, "adapter-only",
                "the weights are an adapter's, not a model's",
                "PEFT saves what it trained and leaves the base model out; loaded into a plain "
                "model, none of these names is known",
                "load the base model, then PeftModel.from_pretrained(base, FOLDER)",
            )  # fmt: skip


def adapter_inside(view: View) -> Iterator[Finding]:
    """A base model wrapped by PEFT, saved as a whole."""
    for state, names in _with(view, _ADAPTER.search):
        if 2 * len(names) <= len(state.names):
            yield _found(
                view, state, names, "adapter-inside",
                "a model with an adapter in it was saved",
                "PEFT renames the layers that it wraps (`base_layer`) and puts its factors beside",
                "wrap the model in the same way first, or merge_and_unload() before saving",
            )  # fmt: skip


def quantised_state(view: View) -> Iterator[Finding]:
    """Weights packed by a quantiser: not the numbers that a float model has."""
    for state in _states(view):
        names = [
            name
            for name, tensor in state.names.items()
            if _QUANTISED.search(name) or tensor.layout == "quantized"
        ]
        # `zero_point` alone may be anyone's name.
        if names and not all(name.endswith("zero_point") for name in names):
            yield _found(
                view, state, names, "quantised-state",
                "the weights are quantised",
                "packed integers, scales and zero points stand where a float model has one weight",
                "quantise the model in the same way before loading, or take the float checkpoint",
            )  # fmt: skip


def flat_parameters(view: View) -> Iterator[Finding]:
    """FSDP's flattened parameters instead of the model's own."""
    for state, names in _with(view, _FLAT.search):
        if all(len(state.names[name].shape) == 1 for name in names):
            yield _found(
                view, state, names, "flat-parameters",
                "the parameters are flattened, as FSDP keeps them",
                "many parameters stand one after another in one padded row of numbers; the names "
                "and shapes of the model are not in the file",
                "save it again with StateDictType.FULL_STATE_DICT (or get_model_state_dict), or "
                "load it into the model wrapped in the same way",
            )  # fmt: skip


def empty_placeholders(view: View) -> Iterator[Finding]:
    """Weights of shape [0]: DeepSpeed ZeRO-3 leaves these where another rank has the numbers."""
    for state in _states(view):
        empty = [n for n, t in state.names.items() if t.shape == (0,) and _is_weight(n)]
        weights = [n for n in state.names if _is_weight(n)]
        if len(empty) > 1 and 2 * len(empty) > len(weights):
            yield _found(
                view, state, empty, "empty-placeholders",
                "the weights have the shape [0]: the file holds no numbers of them",
                "under DeepSpeed ZeRO-3 each rank has a piece of every parameter, and a plain "
                "state_dict() sees an empty placeholder",
                "run zero_to_fp32.py in the checkpoint's folder, or save with "
                "stage3_gather_16bit_weights_on_model_save: true",
                severity="warning", confidence="likely",
            )  # fmt: skip


def values_missing(view: View) -> Iterator[Finding]:
    """Tensors of the meta device: a shape and a dtype, and no numbers."""
    if view.format == "holdtrue":  # its manifest says of each tensor what it is
        return
    empty = [path for path, tensor in view.tensors.items() if tensor.layout == "meta"]
    if not empty:
        return
    places = tuple(f"{view.path}: {path}" for path in empty)
    yield Finding(
        code="values-missing",
        severity="warning",
        where=places[0],
        places=several(places),
        what=f"{counted(len(empty), 'tensor')} of the file {'has' if len(empty) == 1 else 'have'} "
        "no values",
        why="they were on the meta device when saved: a shape and a dtype, no numbers",
        saved=f"{len(view.tensors) - len(empty)} of {len(view.tensors)} tensors with values",
        fix="save again once the model has its values; offloading libraries can gather them first",
    )


def partition_file(view: View) -> Iterator[Finding]:
    """One rank's piece of a DeepSpeed checkpoint."""
    tree = view.tree
    inner = tree.get("optimizer_state_dict") if isinstance(tree, dict) else None
    keys = {name_of(key) for key in inner} if isinstance(inner, dict) else set()
    if len(keys & _ZERO_PIECE) >= 2:
        yield Finding(
            code="partition-file",
            severity="warning",
            where=f"{view.path}: optimizer_state_dict",
            what="the file is one rank's piece of a DeepSpeed ZeRO checkpoint",
            why="it holds a flat slice of every parameter and of the optimizer's state "
            f"({', '.join(sorted(keys & _ZERO_PIECE))})",
            fix="run zero_to_fp32.py in the folder above it, and open the file that it writes",
        )


def tied_tensors(view: View) -> Iterator[Finding]:
    """Names that share one memory in the file: loading must tie them again."""
    for state in _states(view):
        groups: dict[object, list[str]] = {}
        for name, tensor in state.names.items():
            if len(tensor.pieces) == 1 and tensor.pieces[0].storage.nbytes:
                groups.setdefault(_memory(tensor), []).append(name)
        tied = [names for names in groups.values() if len(names) > 1]
        if tied:
            places = tuple(_place(view, state, " = ".join(names)) for names in tied)
            yield Finding(
                code="tied-tensors",
                severity="note",
                where=places[0],
                places=several(places),
                what="one tensor stands under several names"
                if len(tied) == 1
                else f"{len(tied):,} tensors stand under several names each",
                why="they were one tensor when saved; a model that does not tie them gets copies, "
                "which training then drives apart",
                fix="restore ties them again where the model does",
                command=restore_command(view.path),
            )


def numbered_duplicates(view: View) -> Iterator[Finding]:
    """Keys that are different in Python and the same as text: 1 and "1"."""
    twice = [path for path in view.tensors if re.search(r"#\d+$", path)]
    bases = [path.rpartition("#")[0] for path in twice]
    found = [base for base in dict.fromkeys(bases) if base in view.tensors]
    if found:
        places = tuple(f"{view.path}: {base}" for base in found)
        yield Finding(
            code="duplicate-keys",
            severity="warning",
            where=places[0],
            places=several(places),
            what="two entries have the same name",
            why="a number and its text are two keys of a dict, and one name everywhere else; a "
            "file that is written by name keeps the last of them",
            fix="rename one of them before the file is converted",
        )


def _states(view: View) -> list[StateDict]:
    return [] if view.format == "holdtrue" else state_dicts(view)


def _with(view: View, matches: Callable[[str], object]) -> Iterator[tuple[StateDict, list[str]]]:
    for state in _states(view):
        names = [name for name in state.names if matches(name)]
        if names:
            yield state, names


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] in ("weight", "bias")


def _memory(tensor: LazyTensor) -> object:
    piece = tensor.pieces[0]
    storage = piece.storage
    return storage.file, storage.key, piece.offset, piece.stride, tensor.shape, tensor.dtype


def _place(view: View, state: StateDict, name: str) -> str:
    return f"{view.path}: {state.path}/{name}" if state.path else f"{view.path}: {name}"


def _found(
    view: View,
    state: StateDict,
    names: list[str],
    code: str,
    what: str,
    why: str,
    fix: str,
    *,
    severity: str = "note",
    confidence: str = "certain",
) -> Finding:
    places = tuple(_place(view, state, name) for name in names)
    return Finding(
        code=code,
        severity=severity,  # type: ignore[arg-type]
        confidence=confidence,  # type: ignore[arg-type]
        where=places[0],
        places=several(places),
        what=what,
        why=f"{counted(len(names), 'name')} of {len(state.names):,}: {why}",
        fix=fix,
    )
