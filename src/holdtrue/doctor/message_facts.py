"""What the numbers and names in other tools' messages mean, in words.

Each decoder takes the text of a message, its white space made single, and gives a `Fact` or None.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable
from math import prod

from msgspec import Struct


class Fact(Struct, frozen=True):
    """A sentence about the message, and the page that it points at."""

    text: str
    code: str = ""


_WEB, _LFS, _TEXT, _PACKED = "web-page", "git-lfs-pointer", "text-file", "compressed-file"
_ZIP, _REFUSED = "zip-no-directory", "weights-only-refuses"
# The first byte at which unpickling stops, and what begins so.
_BYTES: dict[int, tuple[str, str]] = {
    ord("v"): ("a git-lfs pointer (“version https://git-lfs…”) instead of the file", _LFS),
    ord("<"): ("HTML or XML: a web page was saved instead of the file", _WEB),
    0x0A: ("an empty first line, as web pages begin with", _WEB),
    0x0D: ("an empty first line, as web pages begin with", _WEB),
    ord("{"): ("JSON: a configuration, an index or an error message, no weights", _TEXT),
    0x1F: ("a gzip file: unpack it first", _PACKED),
    0xFD: ("an xz file: unpack it first", _PACKED),
    0xB5: ("a Zstandard file: unpack it first", _PACKED),
    ord("x"): (
        "the length of a safetensors header (the file has another suffix than it should), "
        "or data compressed with zlib",
        _PACKED,
    ),
    0x93: ("a NumPy .npy file (or a pickle of protocol 4): holdtrue.open reads it", ""),
    ord("H"): ("an HDF5 file (Keras weights): the byte after its first one", "foreign-format"),
    0x08: ("an ONNX model or another protocol buffer", "foreign-format"),
    0x00: ("zeros: the data never reached the disk; or a GGUF file", "file-zeroed"),
    ord("%"): ("a PDF document", "not-a-checkpoint"),
    0xFF: ("a JPEG picture", "not-a-checkpoint"),
    0x89: ("a PNG picture", "not-a-checkpoint"),
    0x95: (
        "a pickle of protocol 4 or 5: torch reads up to 3 here; holdtrue.open reads it",
        _REFUSED,
    ),
    0x8C: (
        "a pickle of protocol 4 or 5: torch reads up to 3 here; holdtrue.open reads it",
        _REFUSED,
    ),
    0x96: ("a pickle of protocol 5: torch reads up to 3 here; holdtrue.open reads it", _REFUSED),
    ord("P"): ("a zip archive, whose end is missing or that lies in another file", _ZIP),
}
_ESCAPES = {r"\n": 10, r"\r": 13, r"\t": 9, r"\\": 92, r"\'": 39}


def facts(text: str) -> tuple[Fact, ...]:
    """Everything that can be said of a message."""
    return tuple(found for decode in _DECODERS for found in decode(text))


def _operand(text: str) -> Iterable[Fact]:
    for number in re.findall(r"Unsupported operand (\d{1,3})\b", text):
        yield _first_byte(int(number), f"operand {number}")
    for key in re.findall(r"invalid load key, '(\\x[0-9a-f]{2}|\\?[^'])'", text):
        value = int(key[2:], 16) if key.startswith(r"\x") else _ESCAPES.get(key, ord(key[-1]))
        yield _first_byte(value, f"load key {key!r}" if len(key) == 1 else f"load key '{key}'")


def _first_byte(value: int, said: str) -> Fact:
    shown = f" ({chr(value)!r})" if 32 <= value < 127 else ""
    known = _BYTES.get(value)
    if known is None:
        return Fact(
            f"{said} is the byte 0x{value:02x}{shown}, with which no pickle goes on",
            "unknown-format",
        )
    return Fact(f"{said} is the byte 0x{value:02x}{shown}: {known[0]}", known[1])


def _missing_bytes(text: str) -> Iterable[Fact]:
    for number in re.findall(r"unexpected EOF, expected (\d{1,18}) more bytes", text):
        yield Fact(f"{int(number):,} bytes are missing at the end: it was cut", "legacy-truncated")


def _wrong_length(text: str) -> Iterable[Fact]:
    for expected in re.findall(
        r"storage has wrong (?:byte )?size: expected (-?\d{1,20}) got", text
    ):
        if expected.startswith("-"):
            yield Fact(
                f"a length of {expected} was overwritten: usually several processes wrote the file",
                "legacy-storages",
            )


def _writer(text: str) -> Iterable[Fact]:
    if "PytorchStreamWriter failed writing" in text:
        yield Fact("the file system took no more bytes: look at df and quotas", "disk-full")
    found = re.search(r"unexpected pos (\d{1,18}) vs (\d{1,18})", text)
    if found:
        gap = abs(int(found[1]) - int(found[2]))
        yield Fact(f"{gap:,} bytes were not written: the disk was full before", "disk-full")


def _version(text: str) -> Iterable[Fact]:
    found = re.search(
        r"version (\d{1,9})\b.{0,40}maximum supported version for reading is (\d{1,9})", text
    )
    if found:
        yield Fact(
            f"a newer torch wrote it (file version {found[1]}, here up to {found[2]}): "
            "pip install --upgrade torch, or holdtrue.open, which reads it",
            "torch-older",
        )


def _header(text: str) -> Iterable[Fact]:
    if re.search(r"HeaderTooLarge|header too large", text):
        yield Fact(
            "the first 8 bytes are not the length of a header: the file is no safetensors file, "
            "often a pickle or a zip under another name",
            "safetensors-header-damaged",
        )


def _global(text: str) -> Iterable[Fact]:
    for name in dict.fromkeys(
        re.findall(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.$]{1,200})", text)
    ):
        package = name.partition(".")[0]
        kind = (
            "a class of the script that saved it"
            if package == "__main__"
            else f"from the package {package}"
        )
        yield Fact(
            f"the file holds a {name}, {kind}; holdtrue.open reads it as data, without running it",
            "weights-only-refuses",
        )


def _errno(text: str) -> Iterable[Fact]:
    for number in re.findall(r"\[Errno (\d{1,3})\]", text):
        name = errno.errorcode.get(int(number))
        if name:
            yield Fact(f"errno {number} is {name}: {os.strerror(int(number)).lower()}")


def _device(text: str) -> Iterable[Fact]:
    found = re.search(r"CUDA device (\d{1,4}) but torch\.cuda\.device_count\(\) is (\d{1,4})", text)
    if found:
        yield Fact(f"saved from cuda:{found[1]}, and here are {found[2]} devices", "device-tags")
    found = re.search(r"\(tagged with ([\w:]{1,40})\)", text)
    if found:
        yield Fact(f"saved from {found[1]}, which this torch does not have", "device-tags")


def _shapes(text: str) -> Iterable[Fact]:
    size = r"(?:torch\.Size\()?\[([\d, ]{0,200})\]\)?"
    pattern = (
        rf"size mismatch for ([\w.]{{1,300}}): copying a param with shape {size} from checkpoint, "
        rf"the shape in current model is {size}"
    )
    for name, saved, here in re.findall(pattern, text)[:20]:
        one, other = _numbers(saved), _numbers(here)
        yield Fact(f"{name}: {_shape_meaning(name, one, other)}", "shape-mismatch")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.replace(" ", "").split(",") if n)


def _shape_meaning(name: str, saved: tuple[int, ...], here: tuple[int, ...]) -> str:
    shown = f"saved {list(saved)}, here {list(here)}"
    if saved == (0,):
        return f"{shown}: a placeholder of DeepSpeed ZeRO-3, whose values lie in other files"
    if len(saved) != len(here):
        flat = prod(saved) == prod(here)
        return f"{shown}: " + ("flattened, as FSDP does" if flat else "another kind of layer")
    places = [i for i, (a, b) in enumerate(zip(saved, here, strict=True)) if a != b]
    if len(places) > 1:
        turned = sorted(saved) == sorted(here)
        return f"{shown}: " + ("transposed" if turned else "another width or variant of the model")
    place = places[0] if places else 0
    return f"{shown}: dimension {place} differs, {_dimension(name.lower(), place, len(saved))}"


def _dimension(name: str, place: int, axes: int) -> str:
    if re.search(r"pos(ition)?[_.]?(emb|enc)|wpe", name):
        return "the longest sequence, or the number of image patches"
    if place == 0 and re.search(r"embed|wte|lm_head|tok|word|shared\.weight", name):
        return "the size of the vocabulary: tokens were added or removed"
    if place == 0 and re.search(r"(^|[._])(fc|head|classifier|out|logits|cls|output|linear)", name):
        return "usually the number of classes"
    if axes >= 4 or "conv" in name:
        return "the number of output channels" if place == 0 else "the number of input channels"
    return "the number of outputs of the layer" if place == 0 else "the number of its inputs"


_WRAPPERS = {
    "module.": "DataParallel or DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "_forward_module.": "Lightning Fabric or DeepSpeed",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "PEFT",
    "model.": "a trainer that has the model as an attribute",
    "net.": "a trainer that has the model as an attribute",
}
_NESTED = ("state_dict", "model_state_dict", "model", "net", "epoch", "optimizer", "ema")


def _another_loader(text: str) -> Iterable[Fact]:
    if re.search(r"TorchScript archives|did you mean to use torch\.jit\.load", text):
        yield Fact(
            "it is a TorchScript file: torch.jit.load, or holdtrue.open, which runs nothing",
            "torchscript-archive",
        )
    if "locating file constants.pkl" in text:
        yield Fact("it is no TorchScript file: torch.load it, or holdtrue.open")
    if "legacy .tar format" in text:
        yield Fact("it was written before torch 0.4: holdtrue.open reads it, running nothing")
    if "cannot instantiate '" in text and "Path'" in text:
        yield Fact(
            "a path that was pickled on another operating system: holdtrue.open reads it",
            "object-in-file",
        )
    if "'ascii' codec can't decode" in text:
        yield Fact("a pickle of Python 2: holdtrue.open reads its byte strings as they are")
    if re.search(r"No module named 'numpy\._?core", text):
        yield Fact("saved with another major version of NumPy: holdtrue.open needs none of it")
    if "mmap can only be used with files saved" in text:
        yield Fact("it was written before torch 1.6: holdtrue convert makes a new one of it")


def _keys(text: str) -> Iterable[Fact]:
    if "key(s) in state_dict" not in text:
        return
    missing, unexpected = _listed(text, "Missing"), _listed(text, "Unexpected")
    whole = [key for key in unexpected if key in _NESTED]
    if missing and whole:
        yield Fact(
            f"the file is a training checkpoint: the weights lie under one of {', '.join(whole)}",
            "nested-key",
        )
        return
    for ours, theirs, side in ((unexpected, missing, "file"), (missing, unexpected, "model")):
        for prefix, wrapper in _WRAPPERS.items():
            bare = {key.removeprefix(prefix) for key in ours}
            all_have = bool(ours) and all(key.startswith(prefix) for key in ours)
            # Known prefixes of one wrapper only are told without the other side's names.
            if all_have and (bare & set(theirs) or (prefix.startswith(("module.", "_")))):
                yield Fact(
                    f"all names of the {side} begin with {prefix!r}: {wrapper} puts it there",
                    "prefix-removed",
                )
                return


def _listed(text: str, which: str) -> list[str]:
    found = re.search(rf"{which} key\(s\) in state_dict: ", text)
    if not found:
        return []
    rest = text[found.end() :]
    end = re.search(r"(Missing|Unexpected) key\(s\)|size mismatch for", rest)
    return re.findall(r'"([^"]{1,300})"', rest[: end.start()] if end else rest)


_DECODERS: tuple[Callable[[str], Iterable[Fact]], ...] = (
    *(_operand, _missing_bytes, _wrong_length, _writer, _version, _header, _global),
    *(_errno, _device, _shapes, _keys, _another_loader),
)
