"""Tensors of every dtype, layout and kind: bit for bit through `open` and `restore`, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from same import WIDTHS, bits, same_tensor
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import holdtrue
from holdtrue.records.inert import Record

DTYPES = sorted({v for v in vars(torch).values() if isinstance(v, torch.dtype)}, key=str)
QUANTISED = {torch.quint8, torch.qint8, torch.qint32, torch.quint4x2, torch.quint2x4}
PLAIN = [d for d in DTYPES if d not in QUANTISED]
pytestmark = pytest.mark.filterwarnings("ignore")


def kept(tmp_path: Path, value: Any, trust: Any = ()) -> Any:
    holdtrue.save(tmp_path / "c", part=value)
    return holdtrue.open(tmp_path / "c", trust=trust)["part"]


def refused(tmp_path: Path, **parts: Any) -> dict[str, str]:
    with pytest.raises(holdtrue.SaveError) as caught:
        holdtrue.save(tmp_path / "refused", **parts)
    assert list(tmp_path.iterdir()) == []
    return {f.where: f.what for f in caught.value.report.findings}


def filled(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random bits, so NaNs of all kinds, subnormals and infinities among them."""
    made = torch.empty(shape, dtype=dtype)
    count = made.numel() * made.element_size()
    raw = np.random.default_rng(seed).integers(0, 256, count, np.uint8)
    if dtype is torch.bool:
        raw &= 1
    return made.set_(torch.from_numpy(raw).untyped_storage(), 0, made.size(), made.stride())


def laid(dtype: torch.dtype) -> dict[str, Tensor]:
    """One tensor for each way to lie in memory."""
    image, volume = filled(dtype, (2, 3, 4, 5)), filled(dtype, (2, 3, 2, 2, 2))
    last, last_3d = (0, 2, 3, 1), (0, 2, 3, 4, 1)
    return {
        "0-d": filled(dtype, ()),
        "1-d": filled(dtype, (7,)),
        "empty": filled(dtype, (0,)),
        "empty 3-d": filled(dtype, (2, 0, 3)),
        "contiguous": image,
        "transposed": filled(dtype, (3, 4)).t(),
        "channels last": filled(dtype, (2, 4, 5, 3)).permute(0, 3, 1, 2),
        "channels last 3-d": filled(dtype, (2, 2, 2, 2, 3)).permute(0, 4, 1, 2, 3),
        "permuted": image.permute(last).permute(last),
        "volume": volume.permute(last_3d),
        "expanded": filled(dtype, (3, 1)).expand(3, 4),
        "expanded 0-d": filled(dtype, ()).expand(2, 2),
        "gaps": filled(dtype, (10, 6))[1:9:2, ::3],
        "offset": filled(dtype, (10,))[3:],
        "one row": filled(dtype, (5, 1, 4))[:, 0],
        "sizes of one": filled(dtype, (4, 1, 1)).permute(1, 0, 2),
        "diagonal": filled(dtype, (4, 4)).diagonal(),
        "windows": filled(dtype, (8,)).unfold(0, 3, 2),
    }


def is_dense(tensor: Tensor) -> bool:
    """Every element of the memory between first and last belongs to the tensor, or repeats."""
    once = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1 and s]
    span = 1 + sum((n - 1) * s for n, s in once)
    return tensor.numel() == 0 or span == int(np.prod([n for n, _ in once], initial=1))


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_every_dtype_in_every_layout(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = laid(dtype)
    back = kept(tmp_path, saved)
    assert list(back) == list(saved)
    for name, tensor in saved.items():
        assert same_tensor(tensor, back[name]), name
        if is_dense(tensor):
            assert tensor.stride() == back[name].stride(), name
    opened = holdtrue.open(tmp_path / "c")
    for name in saved:
        assert same_tensor(opened.tensors[f"part/{name}"].torch(), saved[name]), name


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_every_dtype_in_place_of_a_module(tmp_path: Path, dtype: torch.dtype) -> None:
    def module(tensors: dict[str, Tensor], seed: int = 50) -> nn.Module:
        made = nn.Module()
        for i, tensor in enumerate(tensors.values()):
            made.register_buffer(f"b{i}", tensor, persistent=i % 3 > 0)
            made.register_parameter(
                f"p{i}",
                nn.Parameter(filled(dtype, tuple(tensor.shape), seed + i), requires_grad=False),
            )
        return made

    saved = laid(dtype)
    model = module(saved)
    holdtrue.save(tmp_path / "c", model=model)
    zeros = {n: torch.zeros(t.shape, dtype=torch.uint8) for n, t in saved.items()}
    straight = module({n: filled(dtype, tuple(z.shape), 9) for n, z in zeros.items()})
    gaps = {n: filled(dtype, (*(2 * s for s in z.shape),), 9) for n, z in zeros.items()}
    spaced = module({n: g[tuple(slice(None, None, 2) for _ in g.shape)] for n, g in gaps.items()})
    turned = module({n: filled(dtype, tuple(z.shape)[::-1], 9).permute(tuple(range(z.dim()))[::-1])
                     for n, z in zeros.items()})  # fmt: skip
    for target in (straight, spaced, turned, model):
        held = {n: (id(t), t.data_ptr(), t.stride()) for n, t in all_tensors(target).items()}
        holdtrue.open(tmp_path / "c").restore(model=target)
        here = {n: (id(t), t.data_ptr(), t.stride()) for n, t in all_tensors(target).items()}
        assert held == here
        for name, tensor in all_tensors(model).items():
            assert bits(tensor) == bits(all_tensors(target)[name]), name


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


FLOATS = [d for d in PLAIN if d.is_floating_point or d.is_complex]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_bit_pattern_of_a_float(tmp_path: Path, dtype: torch.dtype) -> None:
    """All patterns of 8 and 16 bits; of wider ones every NaN payload bit, quiet and signalling."""
    width = torch.empty(0, dtype=dtype).element_size() // (2 if dtype.is_complex else 1)
    if width < 4:
        raw = np.arange(1 << 8 * width, dtype=f"u{max(width, 1)}")
    else:
        mantissa = {4: 23, 8: 52}[width]
        top = ((1 << 8 * width - 1 - mantissa) - 1) << mantissa
        patterns = [top | 1 << i for i in range(mantissa)] + [top, 1, 0]
        raw = np.array(patterns + [p | 1 << 8 * width - 1 for p in patterns], f"u{width}")
    tensor = torch.empty(0, dtype=dtype)
    count = raw.nbytes // tensor.element_size()
    tensor.set_(torch.from_numpy(raw.view(np.uint8).copy()).untyped_storage(), 0, (count,), (1,))
    assert bits(tensor) == raw.tobytes()
    module = nn.Module()
    module.weight = nn.Parameter(tensor)
    holdtrue.save(tmp_path / "c", model=module, value=[tensor[::2]])
    assert bits(holdtrue.open(tmp_path / "c")["model"]["weight"]) == raw.tobytes()
    assert bits(holdtrue.open(tmp_path / "c")["value"][0]) == bits(tensor[::2])
    target = nn.Module()
    target.weight = nn.Parameter(torch.empty_like(tensor))
    holdtrue.open(tmp_path / "c").restore(model=target)
    assert bits(target.weight) == raw.tobytes()


# -- quantised ---------------------------------------------------------------------------


def quantised() -> dict[str, Tensor]:
    x = torch.linspace(-3, 5, 24).reshape(2, 3, 4)
    scales, zeros = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.tensor([1, 2, 0])
    table, floats = torch.rand(5, 8), torch.rand(5)
    found = {
        f"{dtype} per tensor": torch.quantize_per_tensor(x, 0.05, 3, dtype)
        for dtype in (torch.quint8, torch.qint8, torch.qint32)
    }
    for dtype in (torch.quint8, torch.qint8, torch.qint32):
        found[f"{dtype} per channel"] = torch.quantize_per_channel(x, scales, zeros, 1, dtype)
    for dtype in (torch.quint8, torch.quint4x2, torch.quint2x4):
        found[f"{dtype} float qparams"] = torch.quantize_per_channel(
            table, floats, torch.rand(5), 0, dtype
        )
    found["odd 4 bits"] = torch.quantize_per_channel(
        torch.rand(3, 3), torch.rand(3), torch.rand(3), 0, torch.quint4x2
    )
    image = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    found["channels last"] = torch.quantize_per_tensor(image, 0.01, 2, torch.quint8)
    found["transposed"] = torch.quantize_per_tensor(torch.rand(3, 4).t(), 0.01, 2, torch.quint8)
    found["sliced"] = torch.quantize_per_tensor(torch.rand(6, 4), 0.01, 2, torch.quint8)[1:5:2]
    found["0-d"] = torch.quantize_per_tensor(torch.tensor(0.5), 0.01, 2, torch.qint8)
    found["empty"] = torch.quantize_per_tensor(torch.rand(0, 2), 0.01, 2, torch.qint8)
    return found


def same_quantised(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or a.qscheme() != b.qscheme():
        return False
    if str(a.qscheme()).startswith("torch.per_tensor"):
        how = (a.q_scale(), a.q_zero_point()) == (b.q_scale(), b.q_zero_point())
    else:
        how = a.q_per_channel_axis() == b.q_per_channel_axis()
        for method in ("q_per_channel_scales", "q_per_channel_zero_points"):
            how = how and same_tensor(getattr(a, method)(), getattr(b, method)())
    if a.dtype in (torch.quint4x2, torch.quint2x4):
        return how and bytes(a.untyped_storage()) == bytes(b.untyped_storage())
    return how and torch.equal(a.int_repr(), b.int_repr())


@pytest.mark.parametrize("name", quantised())
def test_quantised_tensors(tmp_path: Path, name: str) -> None:
    tensor = quantised()[name]
    back = kept(tmp_path, {"t": tensor})["t"]
    assert same_quantised(tensor, back)
    if tensor.is_contiguous() or name != "sliced":
        assert back.stride() == tensor.stride()
    model, target = nn.Module(), nn.Module()
    model.register_buffer("q", tensor)
    other = torch.quantize_per_tensor(torch.zeros(tensor.shape), 0.5, 0, torch.quint8)
    target.register_buffer("q", other if tensor.dtype is torch.quint8 else quantised()[name])
    holdtrue.save(tmp_path / "m", model=model)
    holdtrue.open(tmp_path / "m").restore(model=target)
    assert same_quantised(tensor, target.q)


def test_every_quantised_dtype_was_tried() -> None:
    assert {t.dtype for t in quantised().values()} == QUANTISED


def test_a_quantised_tensor_without_a_finite_scale(tmp_path: Path) -> None:
    odd = torch._empty_affine_quantized([2], scale=float("inf"), zero_point=0, dtype=torch.qint8)
    assert set(refused(tmp_path, part=[odd])) == {"part/[0]"}


# -- sparse ------------------------------------------------------------------------------


def sparse() -> dict[str, Tensor]:
    twice = torch.tensor([[2, 0, 2], [1, 3, 1]])
    dense = torch.tensor([[0, 0, 1.5, 0], [2, 0, 0, 0], [0, 0, 0, float("nan")], [0, 3, 0, -0.0]])
    blocks = torch.zeros(4, 6)
    blocks[:2, 3:] = 1
    blocks[2:, :3] = 2
    found = {
        "coo": dense.to_sparse(),
        "not coalesced": torch.sparse_coo_tensor(twice, torch.tensor([1.0, 2, 3]), (4, 5)),
        "coalesced": torch.sparse_coo_tensor(twice, torch.tensor([1.0, 2, 3]), (4, 5)).coalesce(),
        "hybrid": torch.sparse_coo_tensor(twice, torch.rand(3, 2), (4, 5, 2)),
        "no entries": torch.sparse_coo_tensor((3, 4)),
        "0-d": torch.sparse_coo_tensor(torch.zeros(0, 1, dtype=torch.long), torch.ones(1), ()),
        "complex": dense.to(torch.complex64).to_sparse(),
        "bool": dense.bool().to_sparse(),
        "bf16": dense.bfloat16().to_sparse(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": blocks.to_sparse_bsr((2, 3)),
        "bsc": blocks.to_sparse_bsc((2, 3)),
        "csr batch": torch.stack([dense, dense]).to_sparse_csr(),
        "csr hybrid": torch.rand(3, 4, 2).to_sparse_csr(dense_dim=1),
        "requires grad": dense.to_sparse().requires_grad_(),
    }
    narrow = dense.to_sparse_csr()
    found["csr int32"] = torch.sparse_csr_tensor(
        narrow.crow_indices().int(), narrow.col_indices().int(), narrow.values(), (4, 4)
    )
    return found


PIECES = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def same_sparse(a: Tensor, b: Tensor) -> bool:
    if (a.layout, a.shape, a.dtype, a.requires_grad) != (
        b.layout,
        b.shape,
        b.dtype,
        b.requires_grad,
    ):
        return False
    coalesced = a.layout is not torch.sparse_coo or a.is_coalesced() == b.is_coalesced()
    a, b = a.detach(), b.detach()
    return coalesced and all(
        same_tensor(getattr(a, n)(), getattr(b, n)()) for n in PIECES[a.layout]
    )


@pytest.mark.parametrize("name", sparse())
def test_sparse_tensors(tmp_path: Path, name: str) -> None:
    tensor = sparse()[name]
    assert same_sparse(tensor, kept(tmp_path, {"deep": [tensor]})["deep"][0])
    model, target = nn.Module(), nn.Module()
    model.weight = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
    target.weight = nn.Parameter(tensor.detach() * 0, requires_grad=tensor.requires_grad)
    held = target.weight
    holdtrue.save(tmp_path / "m", model=model)
    holdtrue.open(tmp_path / "m").restore(model=target)
    assert target.weight is held
    assert same_sparse(tensor, target.weight)


# -- sharing -----------------------------------------------------------------------------


def test_overlapping_views_share_memory_again(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    views = {
        "whole": base,
        "head": base[:5],
        "tail": base[3:9].reshape(2, 3),
        "turned": base.view(3, 4).t(),
        "steps": base[::2],
        "repeated": base[2:3].expand(4),
        "windows": base.unfold(0, 4, 3),
        "apart": base.clone(),
    }
    back = kept(tmp_path, views)
    for name in views:
        assert same_tensor(views[name], back[name]), name
    for one in views:
        start = base.clone()
        views[one][(0,) * views[one].dim()] += 100
        back[one][(0,) * back[one].dim()] += 100
        for name in views:
            assert same_tensor(views[name], back[name]), (one, name)
        for group in (views, back):
            group["whole"].copy_(start)


def test_views_of_a_large_storage_stay_small(tmp_path: Path) -> None:
    base = torch.zeros(1 << 20)
    back = kept(tmp_path, [base[:3], base[-3:], base[10:12]])
    assert [t.untyped_storage().nbytes() for t in back] == [12, 12, 8]
    assert sum(f.stat().st_size for f in (tmp_path / "c").glob("*.safetensors")) < 5_000


def test_a_conjugate_view_beside_its_base_keeps_both_right(tmp_path: Path) -> None:
    base = filled(torch.complex64, (4,))
    group = {"base": base, "conj": base.conj(), "neg": base.conj().imag, "real": base.real}
    back = kept(tmp_path, group)
    for name, tensor in group.items():
        assert same_tensor(tensor, back[name]), name


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
def test_conjugate_and_negative_views_keep_nan_payloads(tmp_path: Path, dtype: torch.dtype) -> None:
    part = {torch.complex32: 2, torch.complex64: 4, torch.complex128: 8}[dtype]
    tensor = filled(dtype, (64,))
    raw = np.frombuffer(bits(tensor), f"u{part}").reshape(-1, 2).copy()
    raw[:, 1] ^= np.array(
        1 << 8 * part - 1, raw.dtype
    )  # of a conjugate: the sign of each imaginary
    back = kept(tmp_path, [tensor.conj(), tensor.conj().imag])
    assert bits(back[0]) == raw.tobytes()
    assert bits(back[1]) == raw[:, 1].tobytes()


def test_tied_parameters_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    def model() -> nn.Module:
        made = nn.ModuleDict({"embed": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
        made["head"].weight = made["embed"].weight
        return made

    saved = model()
    holdtrue.save(tmp_path / "c", model=saved)
    opened = holdtrue.open(tmp_path / "c")
    assert len([k for k in opened.tensors if k.startswith("model/")]) == 1
    back = opened["model"]
    assert back["embed.weight"] is back["head.weight"]
    assert opened["model"]["embed.weight"] is not back["embed.weight"]
    target = model()
    opened.restore(model=target)
    assert target["head"].weight is target["embed"].weight
    loose = nn.ModuleDict({"embed": nn.Embedding(50, 8), "head": nn.Linear(8, 50, bias=False)})
    assert [f.code for f in opened.restore(model=loose).findings if f.severity == "warning"] == [
        "tie-restored"
    ]
    assert loose["head"].weight is loose["embed"].weight


# -- kinds of parameters -----------------------------------------------------------------


def test_lazy_parameters_before_and_after_their_first_batch(tmp_path: Path) -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3)
        )

    x = torch.rand(2, 3, 6, 6)
    fresh, used = model(), model()
    used(x)
    holdtrue.save(tmp_path / "fresh", model=fresh)
    holdtrue.save(tmp_path / "used", model=used)
    back = holdtrue.open(tmp_path / "fresh")["model"]
    assert torch.nn.parameter.is_lazy(back["0.weight"])
    assert back["0.weight"].requires_grad
    lazy = model()
    held = lazy[3].weight
    holdtrue.open(tmp_path / "fresh").restore(model=lazy)
    assert lazy[3].has_uninitialized_params()
    holdtrue.open(tmp_path / "used").restore(model=lazy)
    assert lazy[3].weight is held
    for name, tensor in used.state_dict().items():
        assert same_tensor(tensor, lazy.state_dict()[name]), name
    used.eval(), lazy.eval()
    assert torch.equal(used(x), lazy(x))
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "fresh").restore(model=used)
    assert "first batch" in str(caught.value)


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


def _parametrised(model: nn.Sequential) -> None:
    parametrize.register_parametrization(model[0], "weight", Symmetric())


def _weight_norm(model: nn.Sequential) -> None:
    parametrizations.weight_norm(model[0])


def _old_weight_norm(model: nn.Sequential) -> None:
    nn.utils.weight_norm(model[0])


def _spectral_norm(model: nn.Sequential) -> None:
    parametrizations.spectral_norm(model[0])


def _old_spectral_norm(model: nn.Sequential) -> None:
    nn.utils.spectral_norm(model[0])


def _orthogonal(model: nn.Sequential) -> None:
    parametrizations.orthogonal(model[0])


def _pruned(model: nn.Sequential) -> None:
    prune.l1_unstructured(model[0], "weight", amount=0.4)
    prune.random_unstructured(model[2], "bias", amount=1)


@pytest.mark.parametrize(
    "change",
    [_parametrised, _weight_norm, _old_weight_norm, _spectral_norm, _old_spectral_norm,
     _orthogonal, _pruned],
)  # fmt: skip
def test_reparametrised_modules(tmp_path: Path, change: Callable[[nn.Sequential], None]) -> None:
    def model(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
        change(made)
        made(torch.rand(4, 6))
        return made

    saved, target, x = model(1), model(2), torch.rand(3, 6)
    holdtrue.save(tmp_path / "c", model=saved)
    back = holdtrue.open(tmp_path / "c")["model"]
    assert list(back) == list(saved.state_dict())
    holdtrue.open(tmp_path / "c").restore(model=target)
    for name, tensor in saved.state_dict().items():
        assert bits(tensor) == bits(target.state_dict()[name]) == bits(back[name])
    for _ in range(2):  # the power iteration of spectral_norm goes on from the same vectors
        assert torch.equal(saved(x), target(x))
    saved.eval(), target.eval()
    assert torch.equal(saved(x), target(x))


def test_the_order_of_a_state_dict_and_buffers_that_it_leaves_out(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("hidden", torch.rand(3), persistent=False)
            self.z, self.a = nn.Linear(2, 2), nn.BatchNorm1d(2)
            self.scale = nn.Parameter(torch.rand(1))
            self.register_buffer("shown", torch.rand(2))
            self.register_buffer("nothing", None)
            self.many = nn.ParameterList([torch.rand(1) for _ in range(11)])
            self.odd = nn.ParameterDict({"$": torch.rand(1), "__metadata__": torch.rand(2)})

    saved, target = Net(), Net()
    holdtrue.save(tmp_path / "c", model=saved)
    back = holdtrue.open(tmp_path / "c")["model"]
    assert list(back) == list(saved.state_dict())
    assert "hidden" not in back
    holdtrue.open(tmp_path / "c").restore(model=target)
    for name, tensor in all_tensors(saved).items():
        assert same_tensor(tensor, all_tensors(target)[name]), name


def test_odd_names_of_tensors(tmp_path: Path) -> None:
    model, target = nn.Module(), nn.Module()
    for made in (model, target):
        for name in ("$", "__metadata__", "x#y", "x~2", "a b", "é", "/up", "con"):
            made.register_parameter(name, nn.Parameter(torch.rand(2)))
        made.add_module("$", nn.Linear(1, 1)) if "$" not in made._parameters else None
        made.add_module("$id", nn.Linear(1, 1))
    value = {"\ud800": torch.ones(1), "__metadata__": torch.ones(2), "a/b": torch.ones(3),
             "a": {"b": torch.zeros(3)}, 3: torch.ones(4), "3": torch.zeros(4)}  # fmt: skip
    holdtrue.save(tmp_path / "c", model=model, value=value)
    holdtrue.open(tmp_path / "c").restore(model=target)
    assert all(torch.equal(t, all_tensors(target)[n]) for n, t in all_tensors(model).items())
    back = holdtrue.open(tmp_path / "c")["value"]
    assert torch.equal(back["a/b"], value["a/b"])
    assert torch.equal(back["a"]["b"], value["a"]["b"])
    assert list(back) == list(value)
    assert all(torch.equal(back[k], value[k]) for k in value if k != "a")


def test_requires_grad_and_parameters_in_values(tmp_path: Path) -> None:
    value = [
        nn.Parameter(torch.rand(2)), nn.Parameter(torch.rand(2), requires_grad=False),
        torch.rand(2, requires_grad=True), torch.rand(2, requires_grad=True) * 2, torch.rand(2),
    ]  # fmt: skip
    back = kept(tmp_path, value)
    assert all(same_tensor(a, b) for a, b in zip(value, back, strict=True))
    assert all(t.is_leaf for t in back)


def test_tensors_made_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        saved, target = nn.Linear(2, 2), nn.Linear(2, 2)
    holdtrue.save(tmp_path / "c", model=saved)
    holdtrue.open(tmp_path / "c").restore(model=target)
    assert torch.equal(saved.weight, target.weight)


def test_a_restore_in_inference_mode_leaves_targets_that_can_be_trained(tmp_path: Path) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    model, fresh = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer, other = torch.optim.Adam(model.parameters()), torch.optim.Adam(fresh.parameters())
    step(model, optimizer)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    with torch.inference_mode():
        wide = nn.Linear(2, 2, dtype=torch.float64)
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
        holdtrue.open(tmp_path / "c").restore(model=wide)
    assert torch.equal(wide.weight, model.weight.double())
    holdtrue.open(tmp_path / "c").restore(model=wide)
    assert not any(t.is_inference() for s in other.state.values() for t in s.values())
    for _ in range(2):
        step(model, optimizer)
        step(fresh, other)
    assert torch.equal(fresh.weight, model.weight)


def test_values_are_read_to_the_cpu_whatever_the_default_device_is(tmp_path: Path) -> None:
    base = torch.rand(6)
    value = {
        "plain": torch.rand(3),
        "empty": torch.empty(0),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.rand(3, 3), 0.1, 0, torch.qint8),
        "left": base[:4],
        "right": base[2:],
        "lazy": nn.UninitializedParameter(),
    }
    model, target = nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64)
    holdtrue.save(tmp_path / "c", value=value, model=model)
    torch.save({"x": base}, tmp_path / "x.pt")
    with torch.device("meta"):
        opened = holdtrue.open(tmp_path / "c")
        back = opened["value"]
        foreign = holdtrue.open(tmp_path / "x.pt")["model"]["x"]
        opened.restore(model=target)
    assert {k: v.device.type for k, v in back.items()} == dict.fromkeys(value, "cpu")
    assert all(same_tensor(back[k], value[k]) for k in ("plain", "left", "right"))
    assert same_tensor(foreign, base)
    assert torch.equal(target.weight, model.weight.double())


def test_restoring_tells_autograd_that_the_values_changed(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    holdtrue.save(tmp_path / "c", model=model)
    loss = (model(torch.rand(1, 2, requires_grad=True)) ** 2).sum()
    holdtrue.open(tmp_path / "c").restore(model=model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_repeated_target_does_not_take_different_values(tmp_path: Path) -> None:
    saved, target = nn.Module(), nn.Module()
    saved.register_buffer("b", torch.arange(4.0))
    target.register_buffer("b", torch.zeros(1).expand(4))
    holdtrue.save(tmp_path / "c", model=saved)
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(model=target)
    assert caught.value.report.errors[0].where == "model/b"
    assert target.b.tolist() == [0.0] * 4


# -- subclasses --------------------------------------------------------------------------


class Tagged(Tensor):
    """A plain subclass with attributes, a tensor among them."""


class TaggedParameter(nn.Parameter):
    pass


class Scaled(Tensor):
    """Two tensors and a number behind one face."""

    @staticmethod
    def __new__(cls, data: Tensor, scale: Tensor, bias: float) -> "Scaled":
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, data.shape, dtype=scale.dtype, requires_grad=False
        )

    def __init__(self, data: Tensor, scale: Tensor, bias: float) -> None:
        self.data_, self.scale_, self.bias_ = data, scale, bias

    def __tensor_flatten__(self) -> Any:
        return ["data_", "scale_"], {"bias": self.bias_}

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> "Scaled":
        return Scaled(inner["data_"], inner["scale_"], context["bias"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Scaled(args[0].data_, args[0].scale_, args[0].bias_)
        raise NotImplementedError(func)


class Mute(Scaled):
    __tensor_flatten__ = None  # type: ignore[assignment]


def scaled(seed: int, bias: float = 1.5) -> Scaled:
    data = torch.arange(seed, seed + 4, dtype=torch.int8)
    return Scaled(data, torch.full((1,), float(seed)), bias)


def tagged(seed: int) -> Tagged:
    made = torch.full((3,), float(seed)).as_subclass(Tagged)
    made.unit, made.more = f"m{seed}", [torch.full((2,), seed), {"k": seed}]
    return made


def test_plain_subclasses_with_attributes(tmp_path: Path) -> None:
    saved = tagged(1)
    back = kept(tmp_path, {"t": saved}, trust=[Tagged])["t"]
    assert type(back) is Tagged
    assert bits(back) == bits(saved)
    assert (back.unit, back.more[1]) == ("m1", {"k": 1})
    assert torch.equal(back.more[0], saved.more[0])
    inert = holdtrue.open(tmp_path / "c")["part"]["t"]
    assert isinstance(inert, Record)
    assert bits(inert.args[0]) == bits(saved.as_subclass(Tensor))
    model, target = nn.Module(), nn.Module()
    model.register_buffer("b", tagged(1))
    target.register_buffer("b", tagged(2))
    model.p = TaggedParameter(torch.ones(2))
    target.p = TaggedParameter(torch.zeros(2))
    model.p.role, target.p.role = "saved", "here"
    held = target.b, target.p
    holdtrue.save(tmp_path / "m", model=model)
    holdtrue.open(tmp_path / "m").restore(model=target)
    assert (target.b, target.p) == held or all(a is b for a, b in zip(held, (target.b, target.p)))
    assert target.b.tolist() == [1.0, 1.0, 1.0]
    assert (target.b.unit, target.b.more[1], target.p.role) == ("m1", {"k": 1}, "saved")
    assert torch.equal(target.p.data, torch.ones(2))


def test_subclasses_that_flatten_themselves(tmp_path: Path) -> None:
    saved = scaled(1)
    back = kept(tmp_path, {"t": saved}, trust=[Scaled])["t"]
    assert type(back) is Scaled
    assert torch.equal(back.data_, saved.data_)
    assert torch.equal(back.scale_, saved.scale_)
    assert back.bias_ == 1.5
    inert = holdtrue.open(tmp_path / "c")["part"]["t"]
    assert isinstance(inert, Record)
    assert torch.equal(inert.state["data_"], saved.data_)
    model, target, other = nn.Module(), nn.Module(), nn.Module()
    model.register_buffer("b", scaled(1))
    target.register_buffer("b", scaled(5))
    other.register_buffer("b", scaled(5, bias=2.5))
    held = target.b
    holdtrue.save(tmp_path / "m", model=model)
    holdtrue.open(tmp_path / "m").restore(model=target)
    assert target.b is held
    assert torch.equal(target.b.data_, saved.data_)
    assert torch.equal(target.b.scale_, saved.scale_)
    with pytest.raises(holdtrue.RestoreError):
        holdtrue.open(tmp_path / "m").restore(model=other)
    assert torch.equal(other.b.data_, scaled(5).data_)


# -- refusals ----------------------------------------------------------------------------


def test_what_has_no_bytes_is_refused_by_path_all_at_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    found = refused(
        tmp_path,
        model=model,
        values={"a": [nested, torch.ones(1)], "b": {"c": torch.empty(2, device="meta")}},
        mute=[Mute(torch.ones(2), torch.ones(1), 0.0)],
        mkldnn=torch.ones(2, 2).to_mkldnn(),
    )
    assert set(found) == {
        "model/1.weight", "model/1.bias", "values/a[0]", "values/b/c", "mute/[0]", "mkldnn/mkldnn",
    }  # fmt: skip
    with pytest.raises(holdtrue.SaveError):
        holdtrue.save(tmp_path / "jagged", value=jagged)
    assert list(tmp_path.iterdir()) == []


def test_a_save_changes_nothing_that_it_saves(tmp_path: Path) -> None:
    tensors = laid(torch.float32)
    before = {n: (bits(t), t.stride(), t._version, t.data_ptr()) for n, t in tensors.items()}
    kept(tmp_path, tensors)
    assert before == {
        n: (bits(t), t.stride(), t._version, t.data_ptr()) for n, t in tensors.items()
    }


def test_how_much_was_tried() -> None:
    layouts = len(laid(torch.float32))
    print(f"tensors: {len(PLAIN)} dtypes x {layouts} layouts, {len(quantised())} quantised, "
          f"{len(sparse())} sparse")  # fmt: skip
    assert set(PLAIN) | QUANTISED == set(DTYPES)
    assert {torch.empty(0, dtype=d).element_size() for d in PLAIN} == {*WIDTHS, 16}
