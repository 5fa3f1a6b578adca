import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import sqlite3
import struct
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from corpus import CORPUS, needs_corpus
from safetensors.torch import save as save_safetensors

from holdtrue.errors import HoldtrueError, OpenError
from holdtrue.formats.detect import detect
from holdtrue.formats.opening import read, reader_of


def torch_bytes(value, **how):
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def zip_bytes(*names, **how):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive:
        for name in names:
            archive.writestr(name, "x" * 30)
    return buffer.getvalue()


def numpy_bytes(save, *args, **kwargs):
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


def tar_bytes(*names, layout=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    return buffer.getvalue()


def script_bytes():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def exported_bytes():
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), buffer)
    return buffer.getvalue()


STATE = {"w": torch.arange(4.0)}
FORMATS = {
    "torch-zip": lambda: torch_bytes(STATE),
    "torch-legacy": lambda: torch_bytes(STATE, _use_new_zipfile_serialization=False),
    "torchscript": script_bytes,
    "pt2": exported_bytes,
    "safetensors": lambda: save_safetensors(STATE),
    "npy": lambda: numpy_bytes(np.save, np.arange(3)),
    "npz": lambda: numpy_bytes(np.savez, a=np.arange(3), b=np.ones(2)),
    "torch-tar": lambda: tar_bytes("sys_info", "pickle", "storages", "tensors"),
    **{f"pickle {p}": lambda p=p: pickle.dumps({"w": [1, "a"]}, p) for p in range(6)},
    **{
        f"torch-legacy {p}": lambda p=p: torch_bytes(
            STATE, pickle_protocol=p, _use_new_zipfile_serialization=False
        )
        for p in range(2, 6)
    },
    **{f"torch-zip {p}": lambda p=p: torch_bytes(STATE, pickle_protocol=p) for p in range(2, 6)},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pt", ".h5", ".json"])
def test_formats_by_content_whatever_the_name(tmp_path, name, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(FORMATS[name]())
    kind = name.split()[0]
    assert detect(str(path)).kind == kind
    assert callable(reader_of(kind))


def refused(path):
    with pytest.raises(OpenError) as error:
        detect(str(path))
    (finding,) = error.value.report.findings
    assert finding.severity == "error"
    assert finding.fix
    assert finding.what
    assert "weights_only" not in finding.fix
    with pytest.raises(OpenError):
        read(str(path))
    return finding


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(60))
NOT_CHECKPOINTS = {
    "empty": (b"", "file-empty", "empty"),
    "zeros": (bytes(5000), "file-zeroed", "nothing but zeros"),
    "zero head": (bytes(20_000) + b"data", "file-zeroed", "beginning is zeros"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:"
        + b"ab" * 32
        + b"\nsize 123456\n",
        "git-lfs-pointer",
        "123,456 bytes, sha256 abab",
    ),
    "lfs, lying size": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:x\nsize " + b"9" * 5000,
        "git-lfs-pointer",
        "unknown size",
    ),
    "web page": (
        b"\n<!DOCTYPE html>\n<html><head><title>Sign\n in &middot; Hub</title></head>",
        "web-page",
        "Sign in",
    ),
    "web page with a mark": ("\ufeff<HTML><TITLE>x</TITLE>".encode(), "web-page", "'x'"),
    "xml": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>no</Message></Error>',
        "text-file",
        "AccessDenied",
    ),
    "json": (b'{"a": [1, 2], "b": "c"}', "text-file", "JSON"),
    "json config": (
        b'{"architectures": ["Bert"], "model_type": "bert"}',
        "text-file",
        "configuration",
    ),
    "json error": (b'{"error": "Invalid username or password."}', "text-file", "error message"),
    "yaml": (b"model:\n  depth: 3\nlr: 0.1\n", "text-file", "YAML"),
    "text": (b"Dear reader,\nthis is no model.\n", "text-file", "text"),
    "python": (b"import torch\nprint(torch.zeros(3))\n", "text-file", "text"),
    "gzip of torch": (gzip.compress(torch_bytes(STATE)), "compressed-file", "a zip file"),
    "gzip of a pickle": (gzip.compress(pickle.dumps(1)), "compressed-file", "a pickle"),
    "gzip of nothing known": (gzip.compress(b"hello"), "compressed-file", "gzip"),
    "gzip, damaged": (b"\x1f\x8b\x08\x00" + b"\xff" * 40, "compressed-file", "damaged"),
    "xz": (lzma.compress(tar_bytes("a")), "compressed-file", "a tar archive"),
    "bzip2": (bz2.compress(save_safetensors(STATE)), "compressed-file", "a safetensors file"),
    "zstd": (b"\x28\xb5\x2f\xfd" + PNG, "compressed-file", "Zstandard"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + PNG, "compressed-file", "7-Zip"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + PNG, "compressed-file", "RAR"),
    "tar": (tar_bytes("run/model.pt", "run/notes.txt"), "compressed-file", "run/model.pt"),
    "old tar": (tar_bytes("a.txt", layout=tarfile.USTAR_FORMAT), "compressed-file", "a.txt"),
    "zip of files": (zip_bytes("a.pt", "b.txt"), "compressed-file", "a.pt"),
    "zip of something": (zip_bytes("a.doc"), "compressed-file", "a.doc"),
    "empty zip": (zip_bytes(), "file-empty", "empty zip"),
    "docx": (zip_bytes("[Content_Types].xml", "word/document.xml"), "not-a-checkpoint", "office"),
    "odt": (zip_bytes("mimetype", "content.xml"), "not-a-checkpoint", "office"),
    "wheel": (zip_bytes("x/__init__.py", "x-1.dist-info/METADATA"), "not-a-checkpoint", "wheel"),
    "jar": (zip_bytes("META-INF/MANIFEST.MF", "A.class"), "not-a-checkpoint", "Java"),
    "keras zip": (zip_bytes("config.json", "model.weights.h5"), "foreign-format", "Keras"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "foreign-format", "HDF5"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(100), "foreign-format", "GGUF"),
    "ggml": (b"tjgg" + bytes(100), "foreign-format", "GGML"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x031.0" + bytes(90), "foreign-format", "ONNX"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(90), "foreign-format", "TensorFlow Lite"),
    "tf index": (PNG[1:] + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "foreign-format", "TensorFlow"),
    "tf state": (b'model_checkpoint_path: "model.ckpt-1"\n', "foreign-format", "TensorFlow"),
    "arrow": (b"ARROW1\0\0" + bytes(90), "foreign-format", "Arrow"),
    "parquet": (b"PAR1" + bytes(90) + b"PAR1", "foreign-format", "Parquet"),
    "mat": (b"MATLAB 5.0 MAT-file, Platform" + bytes(100), "foreign-format", "MATLAB"),
    "pdf": (b"%PDF-1.7\n" + bytes(range(128, 200)), "not-a-checkpoint", "PDF"),
    "png": (PNG, "not-a-checkpoint", "PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(90), "not-a-checkpoint", "JPEG"),
    "elf": (b"\x7fELF\x02\x01\x01" + bytes(90), "not-a-checkpoint", "ELF"),
    "windows program": (b"MZ\x90\0" + bytes(90), "not-a-checkpoint", "Windows"),
    "noise": (bytes(range(200, 256)) * 3, "unknown-format", "c8 c9"),
    "one byte": (b"\x81", "unknown-format", "1 bytes"),
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_named(tmp_path, name):
    data, code, said = NOT_CHECKPOINTS[name]
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    finding = refused(path)
    assert finding.code == code
    assert said in f"{finding.what} {finding.why} {finding.fix}"


def test_encrypted_zip(tmp_path):
    data = bytearray(zip_bytes("secret.txt"))
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + at] |= 1
    path = tmp_path / "f"
    path.write_bytes(bytes(data))
    assert refused(path).code == "archive-encrypted"


def test_database(tmp_path):
    with sqlite3.connect(tmp_path / "f") as base:
        base.execute("create table t (a)")
    assert "SQLite" in refused(tmp_path / "f").what


@needs_corpus
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("git_lfs_pointer.pt", "git-lfs-pointer"),
        ("html_saved_as.pt", "web-page"),
        ("zeros_full_length.pt", "file-zeroed"),
    ],
)
def test_damaged_corpus(name, code):
    assert refused(CORPUS / "damaged" / name).code == code


def test_text_from_a_file_is_shown_on_one_line_without_controls(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"<html><title>a\x1b[31m\nb</title>")
    finding = refused(path)
    assert "\x1b" not in finding.why
    assert "a [31m b" in finding.why


# Paths


def test_missing_path_with_names_that_are_near(tmp_path):
    (tmp_path / "model_best.pt").write_bytes(b"x")
    (tmp_path / "other").write_bytes(b"x")
    finding = refused(tmp_path / "model-best.pt")
    assert finding.code == "path-missing"
    assert "model_best.pt" in finding.fix
    assert "holds model_best.pt, other" in refused(tmp_path / "zzzz").why
    assert "not there" in refused(tmp_path / "no" / "folder").why
    assert refused(tmp_path / "other" / "inside").code == "path-missing"
    assert refused("a\0b").code == "path-missing"
    assert refused("").code == "path-missing"
    assert refused("/" + "n" * 5000).code == "path-unreadable"


def test_a_loop_of_links(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert refused(tmp_path / "a").code == "path-unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(FORMATS["npy"]())
    path.chmod(0)
    assert refused(path).code == "permission-denied"


def test_permission_denied_as_the_system_says_it(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(FORMATS["npy"]())

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)
    assert refused(path).code == "permission-denied"


def test_a_pipe_is_not_opened(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    done = []
    thread = threading.Thread(target=lambda: done.append(refused(path).code), daemon=True)
    thread.start()
    thread.join(10)
    assert done == ["special-file"]


def test_a_socket_and_a_device():
    left, right = socket.socketpair()
    assert refused(f"/proc/self/fd/{left.fileno()}").code == "special-file"
    left.close()
    right.close()
    assert refused("/dev/zero").code == "special-file"


# Directories


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


MANIFEST = b'{"format":"holdtrue","version":1}'
INDEX = json.dumps({"metadata": {}, "weight_map": {"w": "m-1.safetensors"}}).encode()


def test_directories_that_are_checkpoints(tmp_path):
    own = write(tmp_path / "run" / "step-1", manifest__json=MANIFEST)
    assert detect(str(own)).kind == "holdtrue"
    assert detect(str(own / "manifest.json")) == detect(str(own))
    assert detect(str(own.parent)).kind == "holdtrue-run"
    with pytest.raises(OpenError) as error:
        read(str(own.parent))
    assert error.value.report.findings[0].code == "run-not-checkpoint"
    shards = write(tmp_path / "hf")
    (shards / "model.safetensors.index.json").write_bytes(INDEX)
    (shards / "pytorch_model.bin.index.json").write_bytes(INDEX)
    (shards / "config.json").write_bytes(b"{}")
    found = detect(str(shards))
    assert (found.kind, found.path) == ("hf-index", str(shards / "model.safetensors.index.json"))
    assert detect(found.path).kind == "hf-index"
    assert detect(str(shards / "pytorch_model.bin.index.json")).kind == "hf-index"
    assert detect(str(write(tmp_path / "dcp", __metadata=b"x"))).kind == "dcp"


def test_a_manifest_of_something_else_is_no_checkpoint(tmp_path):
    folder = write(tmp_path / "app", manifest__json=b'{"name": "web app"}')
    assert refused(folder).code == "directory-unknown"


DIRECTORIES = {
    "empty": ({}, "directory-unknown", "empty"),
    "one file": ({"weights.bin": FORMATS["torch-zip"]()}, "directory-unknown", "one checkpoint"),
    "two files": (
        {"a.bin": FORMATS["torch-zip"](), "b": FORMATS["npy"]()},
        "directory-unknown",
        "2 checkpoints",
    ),
    "no checkpoint": ({"readme.md": b"hello"}, "directory-unknown", "readme.md"),
    "unfinished dcp": ({"__0_0.distcp": b"x"}, "save-unfinished", "writes .metadata last"),
    "unpacked zip": ({"data.pkl": b"x", "version": b"3"}, "archive-unpacked", "unpacked torch zip"),
    "deepspeed": (
        {"zero_pp_rank_0_mp_rank_00_optim_states.pt": b"x"},
        "foreign-format",
        "zero_to_fp32",
    ),
    "tensorflow": ({"saved_model.pb": b"x"}, "foreign-format", "TensorFlow"),
    "tensorflow checkpoint": (
        {"m.index": b"x", "m.data-00000-of-00001": b"x"},
        "foreign-format",
        "TensorFlow",
    ),
    "orbax": ({"_CHECKPOINT_METADATA": b"{}"}, "foreign-format", "Orbax"),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories_that_are_not(tmp_path, name):
    files, code, said = DIRECTORIES[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    for file, data in files.items():
        (folder / file).write_bytes(data)
    finding = refused(folder)
    assert finding.code == code
    assert said in f"{finding.what} {finding.why} {finding.fix}"


def test_a_directory_of_directories_is_searched_one_level_deep(tmp_path):
    deep = tmp_path
    for _ in range(30):
        deep = deep / "d"
        for sibling in "abc":
            (deep / sibling).mkdir(parents=True)
    assert "no checkpoint" in refused(tmp_path).what
    write(tmp_path / "model", manifest__json=MANIFEST)
    assert detect(str(tmp_path)).kind == "holdtrue-run"
    other = tmp_path / "x"
    (other / "dcp").mkdir(parents=True)
    (other / "dcp" / ".metadata").write_bytes(b"x")
    assert "one checkpoint" in refused(other).what


def test_a_pipe_inside_a_directory_is_passed_over(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.npy").write_bytes(FORMATS["npy"]())
    assert "one checkpoint" in refused(tmp_path).what


def test_a_short_file_written_over_a_long_one(tmp_path):
    long, short = torch_bytes({"w": torch.zeros(500)}), torch_bytes({"w": torch.zeros(5)})
    path = tmp_path / "f"
    path.write_bytes(short + long[len(short) :])
    assert detect(str(path)).kind == "torch-zip"
    try:
        findings = read(str(path)).findings
    except HoldtrueError as error:
        findings = error.report.findings
    assert any(finding.severity == "error" for finding in findings)


def test_a_shard_of_a_distributed_checkpoint_by_itself(tmp_path):
    path = write(tmp_path, __metadata=b"x", __0_0__distcp=torch_bytes(STATE["w"]) * 3)
    finding = refused(path / ".0_0.distcp")
    assert finding.code == "shard-alone"
    assert str(tmp_path) in finding.fix


def test_a_length_prefix_alone_is_a_damaged_safetensors_file(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(struct.pack("<Q", 60))
    assert detect(str(path)).kind == "safetensors"


def test_headers_whose_length_begins_like_a_pickle(tmp_path, figure):
    """640 is 80 02, as a pickle of protocol 2 begins; so for 896, 1,152 and 1,408."""
    path = tmp_path / "file"
    seen = set()
    for count in range(1, 24):
        for length in range(1, 60):
            data = save_safetensors({"x" * length + str(i): torch.zeros(1) for i in range(count)})
            if data[0] == 0x80 and 2 <= data[1] <= 5 and data[1] not in seen:
                seen.add(data[1])
                path.write_bytes(data)
                assert detect(str(path)).kind == "safetensors"
                assert len(read(str(path)).tensors) == count
                figure("safetensors headers that begin like a pickle")
    assert seen == {2, 3, 4, 5}
