"""One function for each parser: any bytes are a value or a HoldtrueError with findings.

Whatever else is raised ends the fuzzing, and so does memory past the limit that the driver sets.
Nothing here needs torch or the fuzzer, so a crash is replayed by calling the target with its bytes.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import xxhash

from holdtrue.doctor.diff import diff
from holdtrue.doctor.examining import examine
from holdtrue.doctor.messages import read_message
from holdtrue.engine.sealing import check_seal
from holdtrue.errors import HoldtrueError
from holdtrue.formats import (
    checkpoint_directory,
    dcp,
    dcp_safetensors,
    hf_index,
    numpy_files,
    opening,
    plain_pickle,
    pt2,
    safetensors_file,
    salvaging,
    torch_legacy,
    torch_tar,
    torch_zip,
    torchscript,
)
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.verifying import parts, verify_view
from holdtrue.formats.view import View
from holdtrue.formats.zip_archive import read_directory, read_entry
from holdtrue.formats.zip_scan import scan_local_headers
from holdtrue.limits import MIB
from holdtrue.records.seal import encode_seal
from holdtrue.verification import verify

Target = Callable[[bytes, Path], None]


def _check(error: HoldtrueError) -> None:
    assert error.report.findings, "an error without a finding"
    for finding in error.report.findings:
        assert finding.code
        assert finding.what
        assert len(finding.why) < 10_000
        assert "weights_only=False" not in finding.fix


def _try(*acts: Callable[[], object]) -> None:
    for act in acts:
        try:
            act()
        except HoldtrueError as error:
            _check(error)


def _everything(view: View) -> None:
    """What is done with a file that opened: each tensor read, all of it verified and examined."""
    for tensor in view.tensors.values():
        for part in parts(tensor):
            if part.layout == "strided":
                _try(lambda part=part: read_tensor(part))
    for finding in verify_view(view).findings:
        assert finding.what
    for finding in examine(view, view.path):
        assert finding.code != "rule-failed", finding.why


def _reader(read: Callable[[str], View], name: str, *more: Callable[[str], object]) -> Target:
    def target(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        _try(
            lambda: _everything(read(str(path))), *(lambda act=act: act(str(path)) for act in more)
        )

    return target


def sealed(body: bytes) -> bytes:
    """A manifest that proves whole, whatever it says."""
    body = body[:-1] if body.endswith(b"}") else body
    return body + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(body).encode() + b'"}\n'


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}          '
PLAIN = struct.pack("<Q", len(HEADER)) + HEADER + struct.pack("<2f", 1, 2)


def manifest(data: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(PLAIN)
    (folder / "manifest.json").write_bytes(sealed(data))
    _try(
        lambda: _everything(checkpoint_directory.read(str(folder))),
        lambda: verify(folder),
        lambda: diff(folder, folder),
    )


def safetensors_header(data: bytes, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(16))
    _try(
        lambda: _everything(safetensors_file.read(str(path))), lambda: salvaging.salvage(str(path))
    )


def zip_directory(data: bytes, folder: Path) -> None:
    path = folder / "f"
    path.write_bytes(data)

    def entries() -> None:
        archive = read_directory(str(path))
        for entry in archive.entries[:50]:
            _try(lambda entry=entry: read_entry(archive, entry, MIB))

    _try(
        entries,
        lambda: scan_local_headers(str(path)),
        lambda: _everything(torch_zip.read(str(path))),
        lambda: torch_zip.salvage(str(path)),
        lambda: _everything(numpy_files.read_npz(str(path))),
        lambda: salvaging.salvage(str(path)),
    )


def pickle(data: bytes, folder: Path) -> None:
    _try(lambda: tensors_by_path(walk(data, where="x").value, "x"))
    _try(lambda: walk(data, where="x", salvage=True))
    path = folder / "f"
    path.write_bytes(data)
    _try(lambda: _everything(plain_pickle.read(str(path))))


def _archive(records: Iterable[tuple[str, bytes]]) -> bytes:
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in records:
            archive.writestr(zipfile.ZipInfo(name), data)
    return made.getvalue()


def torch_pickle(data: bytes, folder: Path) -> None:
    """`data.pkl` of a zip file of torch's with two storages."""
    path = folder / "f"
    records = [("a/data.pkl", data), ("a/byteorder", b"little"), ("a/version", b"3\n")]
    path.write_bytes(_archive([*records, ("a/data/0", bytes(64)), ("a/data/1", bytes(8))]))
    _try(lambda: _everything(torch_zip.read(str(path))), lambda: salvaging.salvage(str(path)))


def scripted(data: bytes, folder: Path) -> None:
    """Code and pickle of a TorchScript archive, parted by a line of its own."""
    code, _, pickled = data.partition(b"\n--\n")
    path = folder / "f"
    records = [("a/data.pkl", pickled), ("a/code/__torch__.py", code), ("a/version", b"3\n")]
    records += [("a/constants.pkl", b"\x80\x02)."), ("a/data/0", bytes(64))]
    path.write_bytes(_archive(records))
    _try(lambda: _everything(torchscript.read(str(path))), lambda: salvaging.salvage(str(path)))


def exported(data: bytes, folder: Path) -> None:
    """The JSON of the weights of a `.pt2`."""
    path = folder / "f"
    records = [
        ("a/archive_format", b"pt2"),
        ("a/archive_version", b"0"),
        ("a/byteorder", b"little"),
    ]
    records += [("a/models/model.json", b"{}"), ("a/data/weights/model_weights_config.json", data)]
    path.write_bytes(_archive([*records, ("a/data/weights/weight_0", bytes(24))]))
    _try(lambda: _everything(pt2.read(str(path))), lambda: salvaging.salvage(str(path)))


def shard_index(data: bytes, folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(PLAIN)
    path = folder / "model.safetensors.index.json"
    path.write_bytes(data)
    _try(lambda: _everything(hf_index.read(str(path))), lambda: hf_index.read_incomplete(str(path)))


def npy(data: bytes, folder: Path) -> None:
    """The header's text, in a file whose lengths are right."""
    path = folder / "f"
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(data)) + data + bytes(32))
    _try(lambda: _everything(numpy_files.read_npy(str(path))))


def dcp_metadata(data: bytes, folder: Path) -> None:
    (folder / ".metadata").write_bytes(data)
    (folder / "__0_0.distcp").write_bytes(
        _archive([("archive/data.pkl", b"\x80\x02N."), ("archive/data/0", bytes(24))])
    )
    _try(lambda: _everything(dcp.read(str(folder))), lambda: dcp.read_incomplete(str(folder)))


def dcp_sharding(data: bytes, folder: Path) -> None:
    text = {"__metadata__": {"DCP_SHARDING_INFO": data.decode("utf-8", "replace")}}
    text |= {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    header = json.dumps(text).encode()
    raw = struct.pack("<Q", len(header)) + header + bytes(8)
    (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(raw)
    _try(lambda: _everything(dcp_safetensors.read(str(folder))))


def message(data: bytes, folder: Path) -> None:
    """What `holdtrue explain` is given: the text of any error."""
    read_message(data.decode("utf-8", "replace"))


def compressed(data: bytes, folder: Path) -> None:
    """A deflated record: the stream is the input, its sizes say what they like."""
    folder / "f"
    name, size = b"a/data.pkl", int.from_bytes(data[:3], "little")
    body = data[3:]
    fields = (8, 0, 0, zlib.crc32(body), len(body), size, len(name))
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, *fields, 0) + name + body
    entry = struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, *fields, 0, 0, 0, 0, 0, 0)
    entry += name
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
    zip_directory(local + entry + end, folder)


def seal(data: bytes, folder: Path) -> None:
    """A seal: the whole file, and the statement in it."""
    (folder / "manifest.json").write_bytes(b"{}")
    for raw in (data, encode_seal(data, b"x" * 64, "0" * 64)):
        (folder / "model.sig").write_bytes(raw)
        for finding in check_seal(folder)[0]:
            assert finding.what
            assert len(finding.why) < 10_000


TARGETS: dict[str, Target] = {
    "seal": seal,
    "manifest": manifest,
    "safetensors-header": safetensors_header,
    "zip-directory": zip_directory,
    "zip-deflate": compressed,
    "pickle": pickle,
    "torch-zip": torch_pickle,
    "torch-legacy": _reader(torch_legacy.read, "f", torch_legacy.salvage),
    "torch-tar": _reader(torch_tar.read, "f"),
    "torchscript": scripted,
    "pt2": exported,
    "shard-index": shard_index,
    "npy-header": npy,
    "dcp-metadata": dcp_metadata,
    "dcp-sharding": dcp_sharding,
    "any-file": _reader(opening.read, "f", salvaging.salvage, verify),
    "error-text": message,
}
