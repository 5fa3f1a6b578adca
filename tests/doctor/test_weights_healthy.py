"""Models as they are built, and as they are after some steps, raise no alarm."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import holdtrue

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
try:
    from architectures import ZOO
except ImportError:
    ZOO = {}

torch.set_num_threads(1)


class _Masked(nn.Module):
    """Masks as models keep them: -inf above the diagonal, ALiBi, a padding mask."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.register_buffer("causal_mask", torch.full((8, 8), -torch.inf).triu(1))
        self.register_buffer("attn_bias", torch.arange(8.0) - torch.full((8, 8), torch.inf).triu(1))
        self.register_buffer("keep", torch.ones(8, 8).tril().bool())
        self.register_buffer("best_loss", torch.tensor(torch.inf))
        self.register_buffer("large", torch.eye(128))

    def forward(self, x):
        return self.proj(x)


class _Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.pos_embed = nn.Parameter(torch.zeros(1, 9, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

    def forward(self, x):
        return self.layer(self.pos_embed + self.cls_token + x[:, :1, None])


class _ZeroResidual(nn.Module):
    """As residual networks with `zero_init_residual`."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv": nn.Conv1d(1, 1, 3, padding=1), "bn2": nn.BatchNorm1d(1)})
            for _ in range(3)
        )
        for block in self.blocks:
            nn.init.zeros_(block["bn2"].weight)

    def forward(self, x):
        x = x[:, None]
        for block in self.blocks:
            x = x + block["bn2"](block["conv"](x))
        return x


class _Tokens(nn.Module):
    def __init__(self, inner=None):
        super().__init__()
        self.embedding = nn.Embedding(40, 8, padding_idx=0)
        self.inner = inner if inner is not None else nn.Identity()
        self.head = nn.Linear(8, 40, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        x = self.inner(self.embedding((x * 5).long().abs() % 40))
        return self.head(x[0] if isinstance(x, tuple) else x)


def _image(*layers):
    return nn.Sequential(nn.Unflatten(1, (2, 2, 2)), *layers)


TORCH = {
    "linear": lambda: nn.Linear(8, 3),
    "mlp": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)),
    "batchnorm": lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)),
    "batchnorm plain": lambda: nn.Sequential(nn.BatchNorm1d(8, affine=False), nn.Linear(8, 2)),
    "layernorm": lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2), nn.PReLU()),
    "layernorm of images": lambda: _image(nn.LayerNorm([2, 2, 2]), nn.Conv2d(2, 2, 1)),
    "rmsnorm": lambda: nn.Sequential(nn.RMSNorm(8), nn.Linear(8, 2)),
    "conv": lambda: _image(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1, groups=4)),
    "transposed": lambda: _image(nn.ConvTranspose2d(2, 3, 2), nn.InstanceNorm2d(3, affine=True)),
    "batchnorm 2d": lambda: _image(nn.Conv2d(2, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)),
    "gru": lambda: nn.GRU(8, 6),
    "lstm": lambda: nn.LSTM(8, 6, 2, bidirectional=True),
    "encoder": lambda: _Tokens(nn.TransformerEncoderLayer(8, 2, 16)),
    "tokens": _Tokens,
    "tokens gru": lambda: _Tokens(nn.GRU(8, 8)),
    "masked": _Masked,
    "vit": _Vit,
    "zero residual": _ZeroResidual,
    "bfloat16": lambda: nn.Linear(8, 3).bfloat16(),
    "double": lambda: nn.Linear(8, 3).double(),
    "wide": lambda: nn.Sequential(nn.Linear(8, 300), nn.Linear(300, 300), nn.Tanh()),
}


def _alarms(path):
    found = holdtrue.diagnose(path, deep=True)
    return [str(f) for f in found.findings if f.severity != "note"]


def _train(model, inputs, steps=3):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
        while not isinstance(out, torch.Tensor):
            out = next(iter(out.values() if hasattr(out, "values") else out))
        optimizer.zero_grad()
        out.float().square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", TORCH)
def test_torch_modules_raise_no_alarm(tmp_path, name, figure):
    torch.manual_seed(1)
    model = TORCH[name]()
    torch.save(model.state_dict(), tmp_path / "fresh.pt")
    assert _alarms(tmp_path / "fresh.pt") == []
    inputs = torch.randn(16, 8, dtype=next(model.parameters()).dtype)
    optimizer = _train(model, inputs)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "trained.pt")
    assert _alarms(tmp_path / "trained.pt") == []
    holdtrue.save(tmp_path / "kept", model=model, optimizer=optimizer)
    assert _alarms(tmp_path / "kept") == []
    figure("healthy models read deep")


@pytest.mark.parametrize("name", ZOO)
def test_published_architectures_raise_no_alarm(tmp_path, name, figure):
    torch.manual_seed(1)
    model, inputs = ZOO[name]()
    torch.save(model.state_dict(), tmp_path / "fresh.pt")
    assert _alarms(tmp_path / "fresh.pt") == []
    optimizer = _train(model.train(), inputs, steps=2)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "trained.pt")
    assert _alarms(tmp_path / "trained.pt") == []
    torch.save(model.half().state_dict(), tmp_path / "half.pt")
    assert _alarms(tmp_path / "half.pt") == []
    figure("healthy models read deep")
