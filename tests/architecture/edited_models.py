"""Builds the models of the mutation tests, each from an edited copy of `project/`."""

import importlib
import shutil
import sys
from pathlib import Path

import torch
from torch import nn

PROJECT = Path(__file__).parent / "project"


def build(model: str, folder: Path, edits=()) -> nn.Module:
    """A model of the project as it is after (file, old, new) edits, or a tiny transformers one."""
    torch.manual_seed(0)
    if model in TRANSFORMERS:
        return TRANSFORMERS[model]().eval()
    if not folder.exists():
        shutil.copytree(PROJECT, folder)
    for file, old, new in edits:
        text = (folder / file).read_text()
        assert old in text, f"{old!r} is not in {file}"
        (folder / file).write_text(text.replace(old, new))
    for name in ("net", "shaping", "moved"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module("net"), model)()
    finally:
        sys.path.remove(str(folder))


def _llama():
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=19, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaModel(config)


def _bert():
    import transformers

    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=19, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertModel(config)


def _gpt2():
    import transformers

    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=19, n_positions=32)
    return transformers.GPT2Model(config)


def _vit():
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    return transformers.ViTModel(config)


TRANSFORMERS = {"llama": _llama, "bert": _bert, "gpt2": _gpt2, "vit": _vit}
