"""What torch.load refuses by default: rich values beside the weights, and what would run."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import logging
import os
import pathlib
import pickle
import subprocess
import types
from typing import Any

import numpy as np
import torch

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.checks import written
from benchmarks.diagnosis.models import any_model, lived, state


class Phase(enum.Enum):
    WARM, COLD = 1, 2


_RICH: dict[str, Any] = {
    "numpy float": lambda: np.float64(0.25),
    "numpy int": lambda: np.int32(7),
    "numpy array": lambda: np.arange(6.0),
    "numpy dtype": lambda: np.dtype("float32"),
    "numpy random state": lambda: np.random.RandomState(3).get_state(),
    "numpy generator": lambda: np.random.default_rng(3),
    "Namespace": lambda: argparse.Namespace(lr=0.1, arch="resnet50"),
    "SimpleNamespace": lambda: types.SimpleNamespace(lr=0.1),
    "Path": lambda: pathlib.PurePosixPath("/data/train"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "deque": lambda: collections.deque([1, 2], maxlen=5),
    "datetime": lambda: datetime.datetime(2024, 5, 17),
    "timedelta": lambda: datetime.timedelta(hours=3),
    "Enum": lambda: Phase.WARM,
    "Decimal": lambda: decimal.Decimal("0.1"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "partial": lambda: functools.partial(int, base=2),
    "function": lambda: torch.nn.functional.relu,
    "log record": lambda: logging.makeLogRecord({"msg": "epoch 3"}),
    "namedtuple": lambda: _parsed_address(),
}


def _parsed_address() -> Any:
    from urllib.parse import urlparse

    return urlparse("s3://bucket/key")


@variants(*_RICH)
def refused_for_a_rich_value(at: At, kind: str) -> Broken:
    truth = state(lived(any_model(at)()))
    key, deeper = at.word(3), at.rng.choice((True, False))
    value = {"inner": _RICH[kind]()} if deeper else _RICH[kind]()
    path = at.save({"state_dict": truth, "epoch": 4, key: value})
    _refused(path)
    return Broken(
        path=path, finds="weights-only", place=key, mend=written(truth),
        cause="Unsupported|Can only build|Trying to", cure="convert|safe_globals",
    )  # fmt: skip


@variants(4, 5)
def refused_for_its_protocol(at: At, protocol: int) -> Broken:
    truth = state(lived(any_model(at)()))
    path = at.save({"state_dict": truth}, pickle_protocol=protocol)
    _refused(path)
    return Broken(
        path=path, finds=("weights-only", "pickle-protocol"), place=path.name, mend=written(truth),
        cause="protocol", cure="convert|re-?save|pickle_protocol",
    )  # fmt: skip


def several_rich_values(at: At) -> Broken:
    truth = state(lived(any_model(at)()))
    keys = [at.word(3) + str(i) for i in range(3)]
    values = [_RICH[k]() for k in at.rng.sample(sorted(_RICH), 3)]
    path = at.save({"state_dict": truth, **dict(zip(keys, values, strict=True))})
    _refused(path)
    return Broken(
        path=path, finds="weights-only", place=keys[1], mend=written(truth), cause="Unsupported",
        cure="convert|safe_globals",
    )  # fmt: skip


def _refused(path: pathlib.Path) -> None:
    """A case only where torch says so."""
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return
    raise AssertionError(f"torch.load takes {path}")


class _Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


_ATTACKS: dict[str, Any] = {
    "os.system": lambda: _Runs(os.system, "echo pwned"),
    "eval": lambda: _Runs(eval, "1 + 1"),
    "exec": lambda: _Runs(exec, "x = 1"),
    "Popen": lambda: _Runs(subprocess.Popen, ["true"]),
    "getattr": lambda: _Runs(getattr, "a", "upper"),
    "import_module": lambda: _Runs(__import__, "antigravity_not_here"),
    "remove": lambda: _Runs(os.remove, "/nonexistent/file"),
}


@variants(*_ATTACKS)
def would_run_code(at: At, name: str) -> Broken:
    """A file that does something when it is unpickled."""
    truth, key = state(lived(any_model(at)())), at.word(3)
    path = at.save({"state_dict": truth, key: _ATTACKS[name]()})
    return Broken(
        path=path, finds="code-in-file", place=(key, path.name),
        mend=Tell(name.replace("os.", "") if name != "import_module" else "__import__"),
        cause=f"(dangerous|malicious|infected)(?s:.)*{name.split('.')[-1]}|{name.split('.')[-1]}(?s:.)*dangerous",
        cure="do not (load|open)|convert|without running",
    )  # fmt: skip


def attack_before_the_weights(at: At) -> Broken:
    """A plain pickle that begins with a call, then holds what it promises."""
    truth = state(lived(any_model(at)()))
    path = at.write(pickle.dumps([_Runs(os.system, "echo pwned"), truth]), ".pkl")
    return Broken(
        path=path, finds="code-in-file", place=path.name, mend=Tell("system"),
        cause="(dangerous|malicious|infected)(?s:.)*system|system(?s:.)*dangerous",
        cure="do not (load|open)|convert|without running",
    )  # fmt: skip
