# ruff: noqa: E501  (a table of lies, one a line)
"""Manifests that lie, and prove whole: whoever changes one can compute its digest anew."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import xxhash

import holdtrue
from attacks.attack import INERT, Attack, Must, add, refused
from attacks.gauntlet import small

FAMILY = "manifest"
DAMAGED = refused("manifest-damaged")


def seal(body: dict[str, Any]) -> bytes:
    """A manifest that proves whole, whatever it says."""
    raw = json.dumps(body, separators=(",", ":")).encode()[:-1]
    return raw + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(raw).encode() + b'"}\n'


def unseal(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((path / "manifest.json").read_bytes())
    del body["xxh3_128"]
    return body


def kept(folder: Path) -> Path:
    """An honest checkpoint, of which one thing is then changed."""
    place = folder / "kept"
    place.mkdir()
    for name, data in honest().items():
        (place / name).write_bytes(data)
    return place


@cache
def honest() -> dict[str, bytes]:
    """Saved once: what a save costs would be most of what an attack costs."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "kept"
        holdtrue.save(place, step=1, metrics={"loss": 0.5}, note=[1], **small())
        return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


BIG = 1 << 62
Lie = Callable[[dict[str, Any]], object]


def _tensor(body: dict[str, Any]) -> dict[str, Any]:
    return body["tensors"]["model/0.weight"]


def _chunk(body: dict[str, Any]) -> dict[str, Any]:
    return _tensor(body)["chunks"][0]


def _cycle(body: dict[str, Any]) -> None:
    for a, b in (("model/0.weight", "model/0.bias"), ("model/0.bias", "model/0.weight")):
        body["tensors"][a] = {"dtype": "float32", "shape": [1], "layout": "subclass",
                              "class_name": "x.Y", "components": {"inner": b}}  # fmt: skip


def _chain(body: dict[str, Any]) -> None:
    """Each tensor made of two of the next: a small file that asks for 2**60 of them."""
    for i in range(60):
        inner = f"model/c{i + 1}"
        body["tensors"][f"model/c{i}"] = {
            "dtype": "float32", "shape": [1], "layout": "subclass", "class_name": "x.Y",
            "components": {"a": inner, "b": inner},
        }  # fmt: skip
    body["tensors"]["model/c60"] = dict(_tensor(body))
    body["parts"]["model"]["state"]["entries"]["0.weight"] = "model/c0"


def _state(body: dict[str, Any], part: str = "note") -> dict[str, Any]:
    return body["parts"][part]


def _deep(body: dict[str, Any]) -> None:
    node: Any = 1
    for _ in range(400):
        node = [node]
    _state(body)["state"] = node


def _sparse(**more: Any) -> Lie:
    def lie(body: dict[str, Any]) -> None:
        _tensor(body).pop("chunks")
        _tensor(body).update(layout="sparse_coo", **more)

    return lie


LIES: dict[str, Lie] = {
    "file name with ..": lambda b: b["files"].update({"../x": b["files"]["model.safetensors"]}),
    "absolute file name": lambda b: b["files"].update({"/etc/passwd": b["files"]["model.safetensors"]}),
    "file name with a NUL": lambda b: b["files"].update({"a\0": b["files"]["model.safetensors"]}),
    "file of negative size": lambda b: b["files"]["model.safetensors"].update(nbytes=-1),
    "file of 2^62 bytes": lambda b: b["files"]["model.safetensors"].update(nbytes=BIG),
    "header of 2^62 bytes": lambda b: b["files"]["model.safetensors"].update(header=BIG),
    "header of negative size": lambda b: b["files"]["model.safetensors"].update(header=-1),
    "header of no bytes": lambda b: b["files"]["model.safetensors"].update(
        header=0, header_digest=xxhash.xxh3_128_hexdigest(b"")),
    "header digest of odd text": lambda b: b["files"]["model.safetensors"].update(header_digest="\0"),
    "chunk in an unlisted file": lambda b: _chunk(b).update(file="x.safetensors"),
    "chunk outside": lambda b: _chunk(b).update(file="../model.safetensors"),
    "chunk of no tensor": lambda b: _chunk(b).update(name="nothing"),
    "chunk digest wrong": lambda b: _chunk(b).update(digest="0" * 32),
    "chunk without digest": lambda b: _chunk(b).update(digest=""),
    "chunk with a negative start": lambda b: _chunk(b).update(start=[-1, 0]),
    "chunk past the tensor": lambda b: _chunk(b).update(start=[5, 5], shape=[1, 2]),
    "chunk with too few dimensions": lambda b: _chunk(b).update(start=[0], shape=[2]),
    "chunk start of one dimension": lambda b: _chunk(b).update(start=[0]),
    "chunk smaller than the tensor": lambda b: (
        _tensor(b).update(shape=[1000, 1000]), _chunk(b).update(start=[0, 0], shape=[1, 2])),
    "chunks that overlap": lambda b: _tensor(b).update(chunks=[_chunk(b)] * 2),
    "no chunks": lambda b: _tensor(b).update(chunks=[]),
    "no chunks and a size of 2^62": lambda b: _tensor(b).update(chunks=[], shape=[BIG]),
    "shape that does not match": lambda b: _tensor(b).update(shape=[3, 7]),
    "shape of 2^62": lambda b: _tensor(b).update(shape=[BIG, BIG]),
    "shape of nothing times 2^62": lambda b: _tensor(b).update(shape=[0, BIG]),
    "negative shape": lambda b: _tensor(b).update(shape=[-1, -2]),
    "a hundred dimensions": lambda b: _tensor(b).update(shape=[1] * 100),
    "strides past the bytes": lambda b: _tensor(b).update(stride=[1, BIG]),
    "negative strides": lambda b: _tensor(b).update(stride=[-1, -1]),
    "strides of another length": lambda b: _tensor(b).update(stride=[1]),
    "unknown dtype": lambda b: _tensor(b).update(dtype="float5"),
    "dtype that is a torch function": lambda b: _tensor(b).update(dtype="load"),
    "another dtype of the same size": lambda b: _tensor(b).update(dtype="quint8"),
    "unknown layout": lambda b: _tensor(b).update(layout="spiral"),
    "layout meta": lambda b: _tensor(b).update(layout="meta"),
    "quantised without quantiser": lambda b: _tensor(b).update(layout="quantized", dtype="qint32"),
    "quantised with an odd scale": lambda b: _tensor(b).update(
        layout="quantized", dtype="qint32", quantizer={"scheme": "x", "scale": 0.0, "zero_point": BIG}),
    "quantised per channel without scales": lambda b: _tensor(b).update(
        layout="quantized", dtype="qint32", quantizer={"scheme": "per_channel_affine", "axis": BIG}),
    "quantised float": lambda b: _tensor(b).update(
        layout="quantized", quantizer={"scheme": "per_tensor_affine", "scale": 1.0, "zero_point": 0}),
    "sparse without components": _sparse(),
    "sparse of wrong components": _sparse(
        components={"indices": "model/0.bias", "values": "model/0.bias"}),
    "sparse of 2^62": _sparse(
        shape=[BIG], components={"indices": "model/0.bias", "values": "model/0.bias"}),
    "component that is missing": _sparse(components={"indices": "model/x"}),
    "components in a cycle": _cycle,
    "component of itself": lambda b: _tensor(b).update(
        layout="subclass", class_name="x.Y", components={"a": "model/0.weight"}),
    "components that double": _chain,
    "overlap of 2^62": lambda b: _tensor(b).update(overlap=[0, BIG]),
    "overlap before the start": lambda b: _tensor(b).update(overlap=[0, -5]),
    "array of an odd dtype": lambda b: _tensor(b).update(numpy="not a dtype"),
    "array of objects": lambda b: _tensor(b).update(numpy="|O"),
    "array with a dtype of 2^31": lambda b: _tensor(b).update(numpy="|V2147483647"),
    "array dtype with commas": lambda b: _tensor(b).update(numpy="f4,f4"),
    "subclass that is not there": lambda b: _tensor(b).update(class_name="os.system"),
    "uninitialised": lambda b: _tensor(b).update(layout="uninitialized", chunks=[], shape=[]),
    "entry of no tensor": lambda b: _state(b, "model")["state"]["entries"].update({"0.weight": "x"}),
    "entries of a wrong type": lambda b: _state(b, "model")["state"].update(entries=[1]),
    "entry of another part": lambda b: _state(b, "model")["state"]["entries"].update(
        {"0.weight": "optimizer/model/0.weight/momentum_buffer"}),
    "module state of a wrong type": lambda b: _state(b, "model").update(state="x"),
    "no module state": lambda b: _state(b, "model").pop("state"),
    "training flags of a wrong type": lambda b: _state(b, "model")["state"].update(training={"": 3}),
    "custom state of a wrong type": lambda b: _state(b, "model")["state"].update(custom={"0": 3}),
    "extra state of a wrong node": lambda b: _state(b, "model")["state"].update(extra={"0": {"$": 1}}),
    "optimizer state of a wrong type": lambda b: _state(b, "optimizer").update(state=[1, 2]),
    "optimizer without groups": lambda b: _state(b, "optimizer")["state"].update(groups=[]),
    "group settings of a wrong type": lambda b: _state(b, "optimizer")["state"]["groups"][0].update(
        settings=[1]),
    "group parameter twice": lambda b: _state(b, "optimizer")["state"]["groups"][0]["params"].append(
        "model/0.weight"),
    "momentum of another shape": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": {"momentum_buffer": {"$": "tensor", "v": "model/0.bias"}}}),
    "momentum that is text": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": {"momentum_buffer": "hello"}}),
    "momentum that is missing": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": {"momentum_buffer": {"$": "tensor", "v": "gone"}}}),
    "state that is a list": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": [1]}),
    "unknown kind of part": lambda b: _state(b).update(kind="executable"),
    "unknown kind of node": lambda b: _state(b).update(state={"$": "call", "v": "os.system"}),
    "kind of node that is a list": lambda b: _state(b).update(state={"$": [], "v": 1}),
    "kind of node that is null": lambda b: _state(b).update(state={"$": None}),
    "node without its value": lambda b: _state(b).update(state={"$": "bytes"}),
    "reference to nothing": lambda b: _state(b).update(state={"$": "ref", "id": []}),
    "reference without a number": lambda b: _state(b).update(state={"$": "ref"}),
    "bytes that are not base64": lambda b: _state(b).update(state={"$": "bytes", "v": "%%%"}),
    "integer of odd digits": lambda b: _state(b).update(state={"$": "int", "v": "0xzz"}),
    "decimal of 10^18 digits": lambda b: _state(b).update(
        state={"$": "timedelta", "v": [10**18, 0, 0]}),
    "scalar of objects": lambda b: _state(b).update(state={"$": "scalar", "v": ["|O", "AAAAAAAAAAA="]}),
    "deque of 2^62": lambda b: _state(b).update(state={"$": "deque", "v": [1], "maxlen": -1}),
    "unhashable key": lambda b: _state(b).update(state={"$": "dict", "v": [[[], 1]]}),
    "pairs that are not pairs": lambda b: _state(b).update(state={"$": "dict", "v": [[1]]}),
    "pairs that are a number": lambda b: _state(b).update(state={"$": "dict", "v": 3}),
    "zone that is a path": lambda b: _state(b).update(
        state={"$": "datetime", "v": "2020-13-45", "tz": {"$": "zoneinfo", "v": "../../etc/passwd"}}),
    "random state of the wrong size": lambda b: _state(b).update(
        state={"$": "random", "v": [3, "AAAA", None]}),
    "torch dtype that is a function": lambda b: _state(b).update(state={"$": "dtype", "v": "load"}),
    "torch device of odd text": lambda b: _state(b).update(state={"$": "device", "v": "moon:9"}),
    "torch layout that is a function": lambda b: _state(b).update(state={"$": "layout", "v": "load"}),
    "torch size of text": lambda b: _state(b).update(state={"$": "size", "v": ["a"]}),
    "generator of a wrong state": lambda b: _state(b).update(
        state={"$": "generator", "v": ["cpu", "AAAA"]}),
    "nested four hundred deep": _deep,
    "random states of a wrong type": lambda b: _state(b, "rng").update(state=[1]),
    "no random states": lambda b: _state(b, "rng").pop("state"),
    "python's random state of a wrong form": lambda b: _state(b, "rng")["state"].update(python=[1]),
    "torch's random state of a wrong form": lambda b: _state(b, "rng")["state"].update(
        torch={"$": "bytes", "v": "AAAA"}),
    "numpy's random state of a wrong form": lambda b: _state(b, "rng")["state"].update(numpy=7),
    "tensors of a wrong type": lambda b: b.update(tensors=[1]),
    "parts of a wrong type": lambda b: b.update(parts=None),
    "files of a wrong type": lambda b: b.update(files="x"),
    "step of a wrong type": lambda b: b.update(step="one"),
    "version zero": lambda b: b.update(version=0),
    "another format": lambda b: b.update(format="holdfalse"),
    "no environment": lambda b: b.pop("environment"),
}  # fmt: skip

# Lies that describe a checkpoint which could have been written; they may restore.
HARMLESS = {"subclass that is not there", "momentum of another shape", "momentum that is text",
            "state that is a list"}  # fmt: skip


def text_of(raw: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = kept(folder)
        (place / "manifest.json").write_bytes(raw)
        return place

    return make


def _sealed_text(body: bytes) -> bytes:
    return body + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(body).encode() + b'"}\n'


TEXTS: dict[str, bytes] = {
    "of nothing": b"",
    "that is a brace": b"{",
    "that is null": b"null",
    "that is a list": b"[]",
    "of zeros": bytes(100),
    "of empty objects": b"{}" * 50,
    "nested a hundred thousand deep": b"[" * 100_000,
    "of no encoding": b"\xff\xfe{}",
    "of a version to come, without its digest": b'{"format":"holdtrue","version":99999}',
    "of two members": b'{"format":"holdtrue","version":1}',
    "that is sealed, and nested 200,000 deep": _sealed_text(
        b'{"format":"holdtrue","version":1,"x":' + b"[" * 200_000 + b"]" * 200_000),
    "that is sealed, with NaN for a step": _sealed_text(b'{"format":"holdtrue","version":1,"step":NaN'),
    "that is sealed, of 17 MiB": _sealed_text(
        b'{"format":"holdtrue","version":1,"x":"' + b"x" * (17 << 20) + b'"'),
    "that is sealed, of a million numbers": _sealed_text(
        b'{"format":"holdtrue","version":1,"x":[' + b"1," * 1_000_000 + b"1]"),
    "that is sealed, of 9,000 digits": _sealed_text(
        b'{"format":"holdtrue","version":1,"step":' + b"9" * 9000),
    "that is sealed, with a version of 2^31": _sealed_text(b'{"format":"holdtrue","version":2147483648'),
    "that is sealed, by a look-alike format": _sealed_text('{"format":"hоldtrue","version":1'.encode()),
}  # fmt: skip
_TEXTS_OTHERWISE: dict[str, Must] = {}
for _name, _raw in TEXTS.items():
    add(Attack(f"a manifest {_name}", FAMILY, "to end in a traceback, or to exhaust memory",
               _TEXTS_OTHERWISE.get(_name, DAMAGED), text_of(_raw)))  # fmt: skip


def _lying(lie: Lie) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = kept(folder)
        body = unseal(place)
        lie(body)
        (place / "manifest.json").write_bytes(seal(body))
        return place

    return make


def _duplicate(key: str, value: str) -> Callable[[Path], Path]:
    """A key twice at the top: the first to some readers, the last to others."""

    def make(folder: Path) -> Path:
        place = kept(folder)
        raw = json.dumps(unseal(place), separators=(",", ":")).encode()[:-1]
        (place / "manifest.json").write_bytes(_sealed_text(raw + f',"{key}":{value}'.encode()))
        return place

    return make


# Classes that a record names, for a caller who trusts their packages by mistake.
_CALLABLES = ("os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec",
              "torch.hub.load", "torch.load", "pickle.loads", "holdtrue_bait.Net",
              "functools.partial", "os.PathLike", "collections.Counter")  # fmt: skip
NODES: dict[str, Callable[[str], Any]] = {
    "object": lambda name: {"$": "object", "class": name, "via": "dict", "state": {"args": "true"}},
    "object by setstate": lambda name: {
        "$": "object",
        "class": name,
        "via": "setstate",
        "state": ["true"],
    },
    "object by state dict": lambda name: {
        "$": "object",
        "class": name,
        "via": "state_dict",
        "state": {},
    },
    "class": lambda name: {"$": "class", "v": name},
    "callable": lambda name: {"$": "callable", "v": name},
    "enum": lambda name: {"$": "enum", "class": name, "name": "A", "v": "true"},
    "defaultdict": lambda name: {
        "$": "defaultdict",
        "factory": {"$": "callable", "v": name},
        "v": [],
    },
}


def _node(node: Any) -> Lie:
    return lambda body: body["parts"]["note"].update(state=node)


for _kind, _of in NODES.items():
    for _class in _CALLABLES if _kind == "object" else _CALLABLES[:9]:
        add(
            Attack(
                f"{_kind} of {_class}",
                "class name",
                "to have a callable imported or called by its name",
                INERT,
                _lying(_node(_of(_class))),
            )
        )

for _class in _CALLABLES:
    add(
        Attack(
            f"part of class {_class}",
            "class name",
            "a class for a whole part",
            INERT,
            _lying(
                lambda body, name=_class: body["parts"]["note"].update(
                    kind="stateful", class_name=name, state={"a": 1}
                )
            ),
        )
    )
    add(
        Attack(
            f"tensor of class {_class}",
            "class name",
            "a class for a tensor",
            INERT,
            _lying(lambda body, name=_class: _tensor(body).update(class_name=name)),
        )
    )

for _key, _value in {
    "step": "7",
    "files": "{}",
    "parts": "{}",
    "tensors": "{}",
    "format": '"x"',
}.items():
    add(
        Attack(
            f"`{_key}` twice",
            FAMILY,
            "one value to one reader, another to the next",
            DAMAGED,
            _duplicate(_key, _value),
        )
    )


def _twice_within(member: str) -> Callable[[Path], Path]:
    """Its first name once more at its end, with what stands there."""

    def make(folder: Path) -> Path:
        place = kept(folder)
        body = unseal(place)
        name = next(iter(body[member]))
        whole = json.dumps(body[member], separators=(",", ":"))
        again = json.dumps({name: body[member][name]}, separators=(",", ":"))
        text = json.dumps(body, separators=(",", ":"))[:-1]
        twice = text.replace(f'"{member}":{whole}', f'"{member}":{whole[:-1]},{again[1:]}')
        (place / "manifest.json").write_bytes(_sealed_text(twice.encode()))
        return place

    return make


for _key in ("files", "parts", "tensors"):
    add(
        Attack(
            f"a name twice within `{_key}`",
            FAMILY,
            "one value to one reader, another to the next",
            DAMAGED,
            _twice_within(_key),
        )
    )

MORE: dict[str, tuple[Lie, Must]] = {
    "file size of NaN": (
        lambda b: b["files"]["model.safetensors"].update(nbytes=float("nan")),
        DAMAGED,
    ),
    "shape of NaN": (lambda b: _tensor(b).update(shape=[float("nan")]), DAMAGED),
    "shape of 2^63": (lambda b: _tensor(b).update(shape=[1 << 63]), DAMAGED),
    "shape of 2^64 and of nothing": (lambda b: _tensor(b).update(shape=[1 << 64, 0]), DAMAGED),
    "file name in a look-alike": (
        lambda b: b["files"].update({"modеl.safetensors": b["files"].pop("model.safetensors")}),
        DAMAGED,
    ),
    "file name of a device": (
        lambda b: b["files"].update({"/dev/zero": b["files"]["model.safetensors"]}),
        DAMAGED,
    ),
    "file name in a folder": (
        lambda b: b["files"].update({"a/b.safetensors": b["files"]["model.safetensors"]}),
        DAMAGED,
    ),
    "source file that climbs": (
        lambda b: b["files"].update(
            {"source/../../outside/secret": b["files"]["model.safetensors"]}
        ),
        DAMAGED,
    ),
    "source file that is absolute": (
        lambda b: b["files"].update({"source//etc/passwd": b["files"]["model.safetensors"]}),
        DAMAGED,
    ),
    "file name of the manifest": (
        lambda b: b["files"].update({"manifest.json": b["files"]["model.safetensors"]}),
        refused("file-longer"),
    ),
    "part called ..": (lambda b: b["parts"].update({"..": b["parts"]["note"]}), INERT),
    "part called /etc/passwd": (
        lambda b: b["parts"].update({"/etc/passwd": b["parts"]["note"]}),
        INERT,
    ),
    "part that forges a report": (
        lambda b: b["parts"].update({"a\n0 errors\x1b[2J": b["parts"]["note"]}),
        INERT,
    ),
    "text of a megabyte for a class": (
        lambda b: b["parts"]["note"].update(class_name="x" * (1 << 20)),
        INERT,
    ),
    "metric of a string": (lambda b: b.update(metrics={"loss": "__import__('os')"}), INERT),
    "architecture of a wrong type": (lambda b: b["parts"]["model"].update(architecture=7), DAMAGED),
    "recipe of a wrong type": (lambda b: b["parts"]["model"].update(rebuild=[7]), DAMAGED),
    "sparse indices past the tensor": (
        lambda b: (
            _tensor(b).pop("chunks"),
            _tensor(b).update(
                layout="sparse_coo",
                components={"indices": "model/1.num_batches_tracked", "values": "model/0.bias"},
            ),
        ),
        DAMAGED,
    ),
    "sparse CSR of two floats": (
        lambda b: (
            _tensor(b).pop("chunks"),
            _tensor(b).update(
                layout="sparse_csr",
                components={
                    "crow_indices": "model/0.bias",
                    "col_indices": "model/0.bias",
                    "values": "model/0.bias",
                },
            ),
        ),
        DAMAGED,
    ),
    "a scale of infinity": (
        lambda b: _tensor(b).update(
            layout="quantized",
            dtype="qint32",
            quantizer={"scheme": "per_tensor_affine", "scale": float("inf"), "zero_point": 0},
        ),
        DAMAGED,
    ),
    "a scale of NaN as text": (
        lambda b: _tensor(b).update(
            layout="quantized",
            dtype="qint32",
            quantizer={"scheme": "per_tensor_affine", "scale": "NaN", "zero_point": 0},
        ),
        DAMAGED,
    ),
    "expanded to terabytes": (lambda b: _tensor(b).update(shape=[1 << 40], stride=[0]), DAMAGED),
    "references that double": (lambda b: _state(b).update(state=_laughs()), INERT),
    "a list that holds itself": (
        lambda b: _state(b).update(state={"$": "list", "id": 1, "v": [{"$": "ref", "id": 1}]}),
        INERT,
    ),
    "a range of 2^200": (
        lambda b: _state(b).update(state={"$": "range", "v": [0, 1 << 200, 1]}),
        INERT,
    ),
    "a path that is a command": (
        lambda b: _state(b).update(state={"$": "path", "v": ["PosixPath", "$(touch x)"]}),
        INERT,
    ),
}
for _name, (_lie, _must) in MORE.items():
    add(Attack(_name, FAMILY, "to make the reader believe a lie", _must, _lying(_lie)))

_LIES_OTHERWISE: dict[str, Must] = dict.fromkeys(HARMLESS, INERT)
_LIES_OTHERWISE |= {
    "unknown kind of part": refused("part-kind-changed"),
    "optimizer without groups": refused("optimizer-params-missing"),
    "python's random state of a wrong form": refused("target-refused"),
    "torch's random state of a wrong form": refused("target-refused"),
    "numpy's random state of a wrong form": refused("target-refused"),
    "file of 2^62 bytes": refused("file-truncated"),
    "header of no bytes": refused("safetensors-header-damaged"),
    "chunk digest wrong": refused("digest-mismatch"),
    "uninitialised": refused("layout-not-plain"),
    "torch dtype that is a function": refused("dtype-unknown"),
}
for _name, _lie in LIES.items():
    add(
        Attack(
            f"lie: {_name}",
            FAMILY,
            "to make the reader believe a lie",
            _LIES_OTHERWISE.get(_name, DAMAGED),
            _lying(_lie),
        )
    )

# What an older reader does not know is skipped by the first look at it, and met by the second.
_UNKNOWN: dict[str, bytes] = {
    "whose name is no text": b'"\x8e\xff":1,',
    "with a number of 10,000 digits": b'"x": ' + b"9" * 10_000 + b",",
    "nested 100,000 deep": b'"x": ' + b"[" * 100_000 + b"]" * 100_000 + b",",
}


def _unknown(member: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = kept(folder)
        raw = json.dumps(unseal(place), separators=(",", ":")).encode()[:-1]
        raw = b"{" + member + raw[1:]
        sealed = raw + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(raw).encode() + b'"}\n'
        (place / "manifest.json").write_bytes(sealed)
        return place

    return make


for _name, _member in _UNKNOWN.items():
    add(
        Attack(
            f"an unknown member {_name}",
            FAMILY,
            "to end the reader in what it has no use for",
            DAMAGED,
            _unknown(_member),
        )
    )


def _laughs() -> Any:
    """A list of ten of the list before, forty times over, by reference."""
    node: Any = {"$": "list", "id": 0, "v": ["ha"]}
    made = [node]
    for level in range(1, 40):
        made.append({"$": "list", "id": level, "v": [{"$": "ref", "id": level - 1}] * 10})
    return made
