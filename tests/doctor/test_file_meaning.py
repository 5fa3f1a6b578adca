"""Whether a file says what a classifier's outputs stand for."""

import pytest
import torch
from torch import nn

import holdtrue

CLASSES = ["cat", "dog", "fish", "bird", "ant"]


def codes(saved, tmp_path):
    torch.save(saved, tmp_path / "f.pt")
    return {finding.code for finding in holdtrue.diagnose(tmp_path / "f.pt").findings}


def classifier():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5)).state_dict()


def test_a_classifier_without_a_word_on_its_classes(tmp_path):
    assert "classes-absent" in codes({"net": classifier(), "epoch": 3}, tmp_path)


@pytest.mark.parametrize(
    "beside",
    [{"names": CLASSES}, {"meta": {"ids": dict(enumerate(CLASSES))}}, {"class_to_idx": {}},
     {"hyper_parameters": {"lr": 0.1}}, {"config": {"x": 1}}],
    ids=lambda beside: next(iter(beside)),
)  # fmt: skip
def test_where_something_is_said_nothing_is_missed(beside, tmp_path):
    assert "classes-absent" not in codes({"net": classifier(), "epoch": 3, **beside}, tmp_path)


@pytest.mark.parametrize(
    "state",
    [nn.Conv2d(3, 8, 3).state_dict(), nn.Linear(4, 64).state_dict(),
     nn.Linear(4, 3, bias=False).state_dict(), nn.BatchNorm1d(3).state_dict()],
    ids=["convolution", "wide", "no bias", "norm"],
)  # fmt: skip
def test_what_is_no_classifier(state, tmp_path):
    assert "classes-absent" not in codes({"net": state, "epoch": 3}, tmp_path)


def test_of_a_bare_state_dict_nothing_is_said(tmp_path):
    assert "classes-absent" not in codes(classifier(), tmp_path)
