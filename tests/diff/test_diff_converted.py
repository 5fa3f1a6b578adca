"""A checkpoint that was converted holds what its source does, whatever its names and values."""

import numpy as np
import pytest
import torch
from torch import nn

from holdtrue.doctor.convert import convert
from holdtrue.doctor.diff import diff


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.head(x))


def scripted(path) -> None:
    torch.jit.script(Net()).save(path)


def traced(path) -> None:
    torch.jit.trace(Net().eval(), torch.ones(2, 3)).save(path)


def frozen(path) -> None:
    torch.jit.freeze(torch.jit.script(Net().eval())).save(path)


def array(path) -> None:
    with open(path, "wb") as file:  # noqa: PTH123, numpy would add a suffix
        np.save(file, np.asfortranarray(np.arange(6.0).reshape(2, 3)))


def structured(path) -> None:
    fields = np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")])
    objects = np.array([1, "a", None], dtype=object)
    with open(path, "wb") as file:  # noqa: PTH123
        np.savez(file, fields=fields, objects=objects, w=np.ones(3))


def trained(path) -> None:
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]}
    torch.save(
        {
            "epoch": 1,
            "state_dict": nn.Linear(2, 3).state_dict(),
            "optimizer_states": [optimizer],
            "hyper_parameters": {"sizes": (1, 2)},
            "callbacks": {"EarlyStopping{'monitor': 'loss'}": {"best": torch.tensor(1.0)}},
        },
        path,
    )


ODD = {1: 1, "1": 2, "a/b": 3, "a": {"b": 4}}
SOURCES = {
    "script": scripted,
    "trace": traced,
    "frozen": frozen,
    "array": array,
    "structured": structured,
    "trained": trained,
    "model": lambda path: torch.save(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), path),
    "odd values": lambda path: torch.save(ODD, path),
    "odd tensors": lambda path: torch.save({1: torch.ones(1), "1": torch.zeros(1),
        "a/b": torch.ones(3), "a": {"b": torch.ones(4)}}, path),
    "bare": lambda path: torch.save(torch.ones(4), path),
    "list": lambda path: torch.save([torch.ones(4), 3], path),
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_a_conversion_equals_its_source(tmp_path, source):
    file, made = str(tmp_path / "source"), tmp_path / "made"
    SOURCES[source](file)
    convert(file, made, to="holdtrue")
    for found in (diff(file, made), diff(made, file)):
        assert found.equal, str(found)


def test_an_array_as_a_torch_file(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5.0))
    convert(tmp_path / "a.npy", tmp_path / "a.pt")
    assert diff(tmp_path / "a.npy", tmp_path / "a.pt").equal


def test_a_conversion_of_another_file_differs(tmp_path):
    torch.save(ODD, tmp_path / "a.pt")
    torch.save(ODD | {"a/b": 5}, tmp_path / "b.pt")
    convert(tmp_path / "b.pt", tmp_path / "made", to="holdtrue")
    found = diff(tmp_path / "a.pt", tmp_path / "made")
    assert [row.path for row in found.values] == ["a_b"]
