"""Error messages of other tools, most of them made by doing the thing, lead to the right page."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from live_messages import LIVE, traceback_of

from holdtrue.doctor.explain import codes, page
from holdtrue.doctor.messages import exceptions, read_message

# As their writers' sources have them, from tools and machines that are not here.
RECORDED = {
    "RuntimeError: Attempting to deserialize object on a CUDA device but "
    "torch.cuda.is_available() is False. If you are running on a CPU-only machine, please use "
    "torch.load with map_location=torch.device('cpu') to map your storages.": "device-tags",
    "RuntimeError: Attempting to deserialize object on CUDA device 3 but "
    "torch.cuda.device_count() is 1. Please use torch.load with map_location": "device-tags",
    "RuntimeError: storage has wrong size: expected -46693482765307 got 512": "legacy-storages",
    "RuntimeError: storage has wrong byte size: expected 512 got 500": "storage-size-mismatch",
    "[enforce fail at inline_container.cc:659] . unexpected pos 1234 vs 1200": "disk-full",
    "RuntimeError: [enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing "
    "file data/3: file write failed": "disk-full",
    "RuntimeError: Attempted to read a PyTorch file with version 10, but the maximum supported "
    "version for reading is 6. Your PyTorch installation may be too old.": "torch-older",
    "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge": (
        "safetensors-header-damaged"
    ),
    "Error while deserializing header: MetadataIncompleteBuffer": "safetensors-header-damaged",
    "Error while deserializing header: InvalidHeaderDeserialization": "safetensors-header-damaged",
    "Some weights of BertForSequenceClassification were not initialized from the model checkpoint "
    "at bert-base-uncased and are newly initialized: ['classifier.bias', 'classifier.weight']": (
        "missing-keys"
    ),
    "Some weights of the model checkpoint at bert-base-uncased were not used when initializing "
    "BertModel: ['cls.predictions.bias']": "unexpected-keys",
    "RuntimeError: You set `ignore_mismatched_sizes` to `False`, thus raising an error. For "
    "details look at the above report!": "shape-mismatch",
    "RuntimeError: Error(s) in loading state_dict for GPT2LMHeadModel:\n\tsize mismatch for "
    "transformer.wte.weight: copying a param with shape torch.Size([32002, 64]) from checkpoint, "
    "the shape in current model is torch.Size([32000, 64]).\n\tYou may consider adding "
    "`ignore_mismatched_sizes=True` to `from_pretrained(...)` if appropriate.": "shape-mismatch",
    "OSError: Error no file named model.safetensors, or pytorch_model.bin, found in directory m.": (
        "directory-unknown"
    ),
    "OSError: You seem to have cloned a repository without having git-lfs installed. Please "
    "install git-lfs and run `git lfs install` followed by `git lfs pull`": "git-lfs-pointer",
    "KeyError: 'Trying to restore optimizer state but checkpoint contains only the model. This is "
    "probably due to `ModelCheckpoint.save_weights_only` being set to `True`.'": "part-missing",
    "TypeError: Net.__init__() missing 2 required positional arguments: 'width' and 'depth'": (
        "target-refused"
    ),
    "FileNotFoundError: Checkpoint at last.ckpt not found. Aborting training.": "path-missing",
    "AttributeError: Can't get attribute 'Net' on <module '__main__' (built-in)>": "class-missing",
    "AttributeError: Can't get attribute 'Net' on <module '__main__' from 'train.py'>": (
        "class-missing"
    ),
    "ModuleNotFoundError: No module named 'models'": "class-missing",
    "ModuleNotFoundError: No module named 'sklearn'": "package-missing",
    "AttributeError: Can't get attribute '_rebuild_tensor_v3' on <module 'torch._utils' from "
    "'/usr/lib/python3/torch/_utils.py'>": "torch-older",
    "AttributeError: module 'torch' has no attribute 'float8_e4m3fn'": "dtype-unknown",
    "_pickle.UnpicklingError: Unsupported operand 253": "compressed-file",
    "OSError: [Errno 116] Stale file handle: 'model.pt'": "path-unreadable",
    "IsADirectoryError: [Errno 21] Is a directory: 'checkpoint'": "directory-unknown",
    "CheckpointException ranks:dict_keys([0])": "save-unfinished",
    "zipfile.BadZipFile: Bad CRC-32 for file 'data/0'": "crc-mismatch",
    "zipfile.BadZipFile: File is not a zip file": "zip-no-directory",
    "PytorchStreamReader failed reading zip archive: invalid header or archive is corrupted": (
        "shard-alone"
    ),
    "RuntimeError: Expected all tensors to be on the same device, but found at least two devices, "
    "cuda:0 and cpu!": "tensor-unregistered",
    "RecursionError: maximum recursion depth exceeded while calling a Python object": "over-budget",
    "RuntimeError: Error(s) in loading state_dict for Net: Unexpected key(s) in state_dict: "
    '"embeddings.position_ids". ': "persistence-changed",
}


@pytest.mark.parametrize("what", LIVE)
def test_a_live_traceback_leads_to_its_page(what, tmp_path, monkeypatch, figure):
    monkeypatch.chdir(tmp_path)
    if what == "disk full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    make, code = LIVE[what]
    reading = read_message(traceback_of(make))
    assert reading.fits, reading.message
    assert (reading.fits[0].code, reading.fits[0].sure) == (code, True), reading
    figure("live error messages that lead to their page")


@pytest.mark.parametrize("message", RECORDED, ids=range(len(RECORDED)))
def test_a_recorded_message_leads_to_its_page(message, figure):
    reading = read_message(message)
    assert reading.fits, message
    # Two pages may be equally right: what one message has as its cause is not always one thing.
    assert RECORDED[message] in [fit.code for fit in reading.fits[:2]], reading
    assert reading.fits[0].sure
    figure("recorded error messages that lead to their page")


@pytest.mark.parametrize("code", [code for code in codes() if page(code).messages])
def test_each_pattern_leads_to_some_page(code):
    for pattern in page(code).messages:
        reading = read_message(re.sub(r"<[a-z_ ]+>", "x1", pattern))
        assert reading.fits, pattern
        assert reading.fits[0].sure, pattern


FACTS = {
    "Unsupported operand 118": "'v'): a git-lfs pointer",
    "Unsupported operand 60": "web page",
    "Unsupported operand 147": "NumPy",
    "Unsupported operand 149": "protocol 4 or 5",
    "Unsupported operand 72": "HDF5",
    "Unsupported operand 120": "safetensors",
    "Unsupported operand 200": "0xc8, with which no pickle goes on",
    r"invalid load key, '\x1f'.": "gzip",
    r"invalid load key, '\n'.": "web pages",
    "unexpected EOF, expected 1234567 more bytes": "1,234,567 bytes are missing",
    "storage has wrong size: expected -46693 got 10": "several processes",
    "unexpected pos 1234 vs 1200": "34 bytes were not written",
    "version 10, but the maximum supported version for reading is 6": "version 10, here up to 6",
    "Unsupported global: GLOBAL __main__.Args was not": "__main__.Args, a class of the script",
    "Unsupported global: GLOBAL omegaconf.dictconfig.DictConfig was": "from the package omegaconf",
    "[Errno 28] No space left on device": "ENOSPC",
    "don't know how to restore data location of torch.storage.UntypedStorage (tagged with npu:0)": (
        "saved from npu:0"
    ),
    "NotImplementedError: cannot instantiate 'PosixPath' on your system": "operating system",
    "UnicodeDecodeError: 'ascii' codec can't decode byte 0xc3 in position 0": "Python 2",
    "ModuleNotFoundError: No module named 'numpy._core'": "another major version of NumPy",
    "PytorchStreamReader failed locating file constants.pkl: file not found": "torch.load it",
    "Cannot use ``weights_only=True`` with TorchScript archives passed to ``torch.load``.": (
        "torch.jit.load"
    ),
}


@pytest.mark.parametrize("message", FACTS, ids=range(len(FACTS)))
def test_numbers_and_names_are_put_into_words(message):
    assert FACTS[message] in " ".join(read_message(message).facts)


SHAPES = {
    ("fc.weight", (10, 512), (5, 512)): "number of classes",
    ("model.embed_tokens.weight", (32002, 64), (32000, 64)): "vocabulary",
    ("conv1.weight", (64, 3, 7, 7), (64, 1, 7, 7)): "input channels",
    ("conv1.weight", (64, 3, 7, 7), (32, 3, 7, 7)): "output channels",
    ("a.weight", (257152, 2), (514304,)): "FSDP",
    ("a.weight", (0,), (4, 4)): "ZeRO-3",
    ("a.weight", (3, 5), (5, 3)): "transposed",
    ("a.weight", (3, 5), (6, 10)): "another width",
    ("pos_embed", (1, 197, 64), (1, 577, 64)): "image patches",
}


@pytest.mark.parametrize("case", SHAPES, ids=range(len(SHAPES)))
def test_shapes_are_put_into_words(case):
    name, saved, here = case
    message = (
        f"size mismatch for {name}: copying a param with shape torch.Size({list(saved)}) from "
        f"checkpoint, the shape in current model is torch.Size({list(here)})."
    )
    (fact,) = read_message(message).facts
    assert SHAPES[case] in fact


CHAINED = """[rank0]: Traceback (most recent call last):
[rank0]:   File "a.py", line 3, in load
[rank0]:     raise OSError(28, "No space left on device")
[rank0]: OSError: [Errno 28] No space left on device

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 9, in <module>
    main()
RuntimeError: Error(s) in loading state_dict for Linear:
\tMissing key(s) in state_dict: "weight", "bias".
\tUnexpected key(s) in state_dict: "module.weight", "module.bias".
"""


def test_the_last_exception_of_a_chain_counts_most():
    first, second = exceptions(CHAINED)
    assert first.startswith("RuntimeError: Error(s) in loading")
    assert '"module.bias"' in first
    assert second == "OSError: [Errno 28] No space left on device"
    found = [fit.code for fit in read_message(CHAINED).fits]
    assert found[0] == "prefix-removed"
    assert "disk-full" in found


def test_what_fits_nothing_is_said_to():
    assert read_message("") == read_message("  \n ")
    assert read_message("").fits == ()
    assert read_message("the cat sat on the mat").fits == ()
    guess = read_message("the optimizer has parameters in another order, matched by position")
    assert guess.fits
    assert not any(fit.sure for fit in guess.fits)


def test_a_word_is_not_cut():
    found = [fit.code for fit in read_message("Unsupported operand 1180").fits]
    assert "git-lfs-pointer" not in found


@pytest.mark.parametrize(
    "text",
    ['Missing key(s) in state_dict: "' * 3000, "size mismatch for " * 6000, "a" * 10**6,
     "Traceback (most recent call last):\n" * 3000, "\0\x1b[31m\ud800" * 999,
     "Unsupported global: GLOBAL " + "a." * 50_000, "[Errno 999999999] Unsupported operand 999"],
    ids=range(7),
)  # fmt: skip
def test_hostile_text_is_read_to_its_end(text):
    reading = read_message(text)
    assert len(reading.message) <= 130
    assert len(reading.facts) < 30
