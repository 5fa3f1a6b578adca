"""Every architecture of the zoo, built again from its checkpoint alone."""

import os
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("transformers", reason="the zoo needs transformers")
sys.path.insert(0, str(Path(__file__).parent.parent / "zoo"))

import torch
from architectures import ZOO
from rebuilt_models import assert_same_model, assert_same_outputs

import holdtrue


@pytest.mark.parametrize("name", ZOO)
def test_architectures_are_built_again(name, tmp_path, figure):
    torch.manual_seed(3)
    model, inputs = ZOO[name]()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.05)
    holdtrue.save(tmp_path / "c", model=model.eval())
    checkpoint = holdtrue.open(tmp_path / "c")
    recipe = checkpoint.manifest.parts["model"].rebuild
    assert recipe.recipe is not None, recipe.reason
    assert recipe.recipe.via == "config"
    built = checkpoint.build(trust=["transformers"])
    assert_same_model(model, built)
    assert_same_outputs(model, built, **inputs)
    figure("architectures rebuilt")
