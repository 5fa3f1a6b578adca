"""Several causes at once, and what is rare."""

import pickle

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from benchmarks.diagnosis.broken import At, Broken, Mended, Tell, variants
from benchmarks.diagnosis.checks import equal, holds, kept, written
from benchmarks.diagnosis.files import rewritten
from benchmarks.diagnosis.models import (
    ConvNet,
    Mlp,
    Transformer,
    any_model,
    bert,
    lived,
    sequential,
    state,
    steps,
)


def nested_wrapped_and_another_head(at: At) -> Broken:
    """{"state_dict": {"module.…"}}, and the classes are others."""
    before, after = at.rng.sample(range(3, 12), 2)
    truth = state(lived(ConvNet(8, before)))
    path = at.save({"epoch": 4, "state_dict": {f"module.{n}": t for n, t in truth.items()}})
    return Broken(
        path=path, finds="shape-mismatch", place="fc.weight", mend=holds(truth, but="fc."),
        targets={"model": ConvNet(8, after)}, cause="Unexpected key|size mismatch for",
        cure="strip|prefix|classes",
    )  # fmt: skip


def wrapped_and_fused(at: At) -> Broken:
    """A prefix on every name, and query, key and value in one tensor."""
    width = at.rng.choice((8, 12))
    saved, target = Transformer(width, fused=True), Transformer(width, fused=False)
    truth: dict[str, torch.Tensor] = {}
    tensors = state(lived(saved))
    for name, tensor in tensors.items():
        if "qkv_proj" in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                truth[name.replace("qkv_proj", f"{part}_proj")] = piece
        else:
            truth[name] = tensor
    return Broken(
        path=at.save({f"model.{n}": t for n, t in tensors.items()}), finds="qkv", place="_proj",
        mend=holds(truth), targets={"model": target}, cause="fused|query", cure="split|chunk",
    )  # fmt: skip


def wrapped_and_narrower(at: At) -> Broken:
    truth = state(lived(ConvNet(8)))

    def check(seen: object) -> bool:
        here = seen["model"].state_dict()  # type: ignore[index]
        return all(equal(here[n], t.to(here[n].dtype)) for n, t in truth.items())

    return Broken(
        path=at.save({f"_orig_mod.{n}": t for n, t in truth.items()}), finds="dtype-narrowed",
        place="stem.weight", mend=Mended(check), targets={"model": ConvNet(8).half()},
        cause="Unexpected key.*_orig_mod", cure="strip|prefix|float",
    )  # fmt: skip


def wrapped_and_renamed(at: At) -> Broken:
    truth = state(lived(ConvNet(8, at.rng.randint(3, 9))))
    new = at.word(3)
    tensors = {f"module.{n.replace('layers.', f'{new}.')}": t for n, t in truth.items()}
    return Broken(
        path=at.save(tensors), finds="names", place=(new, "the top"), mend=holds(truth),
        targets={"model": ConvNet(8, truth["fc.bias"].numel())}, cause="renamed", cure="rename",
    )  # fmt: skip


def capitals(at: At) -> Broken:
    """Conv1 where conv1 is meant."""
    names = [at.word(3) + str(i) for i in range(3)]
    widths = at.rng.sample(range(3, 40), 4)
    truth = state(lived(Mlp(names, widths)))
    return Broken(
        path=at.save({n[0].upper() + n[1:]: t for n, t in truth.items()}), finds="names",
        place=names[0][0].upper(), mend=holds(truth), targets={"model": Mlp(names, widths)},
        cause="renamed", cure="rename",
    )  # fmt: skip


def another_family_of_encoders(at: At) -> Broken:
    """roberta.… in the file, bert.… here."""
    truth = state(lived(bert(3)))
    tensors = {n.replace("bert.", "roberta."): t for n, t in truth.items()}
    return Broken(
        path=at.save(tensors), finds=("names", "prefix"), place=("roberta", "the top"),
        mend=holds(truth), targets={"model": bert(3)}, cause="renamed", cure="rename",
    )  # fmt: skip


def numbered_from_one(at: At) -> Broken:
    """blocks.1 is meant for blocks.0: some names are equal, and mean something else."""
    truth = state(lived(Transformer(8, depth=2)))
    tensors = {n.replace("blocks.1.", "blocks.2.").replace("blocks.0.", "blocks.1."): t
               for n, t in truth.items()}  # fmt: skip
    return Broken(
        path=at.save(tensors), finds=("names", "missing-keys"), place=("blocks.0", "blocks.2"),
        mend=Tell("number|layer|rename|block|depth"), targets={"model": Transformer(8, depth=2)},
        cause="Missing key.*blocks.0", cure="rename|number",
    )  # fmt: skip


def arrays_for_tensors(at: At) -> Broken:
    """A state dict of NumPy arrays, as it came from another framework."""
    make = any_model(at)
    truth = state(lived(make()))
    return Broken(
        path=at.save({n: t.numpy() for n, t in truth.items()}), finds="weights-only",
        place=next(iter(truth)), mend=kept(truth), targets={"model": make()}, cause="Unsupported",
        cure="safe_globals|from_numpy|convert",
    )  # fmt: skip


def averages_without_names(at: At) -> Broken:
    """torch_ema keeps a list: which is which is lost."""
    model = lived(sequential(at.rng.randint(4, 9)))
    shadow = [p.detach() * 0.9 for p in model.parameters()]
    path = at.save({"decay": 0.99, "num_updates": 40, "shadow_params": shadow})
    return Broken(
        path=path, finds=("names-absent", "part-missing"), place=("shadow_params", "model"),
        mend=Tell("name|order|state_dict|state dict"), cause="Missing key|no names",
        targets={"model": sequential(model.conv.out_channels)}, cure="order|names",
    )  # fmt: skip


def statistics_that_diverged(at: At) -> Broken:
    """Only a running mean is NaN: in train mode nobody notices."""
    tensors = state(lived(ConvNet(8)))
    tensors["layers.0.norm.running_mean"][at.rng.randrange(8)] = float("nan")
    return Broken(
        path=at.save({"model": tensors}), finds="nan", place="running_mean", deep=True,
        mend=Tell("earlier|previous|before|another checkpoint|calibrat"), cause="nan",
        cure="earlier|previous",
    )  # fmt: skip


def schedule_of_two_groups(at: At) -> Broken:
    """The schedule was made for two groups, and here is one."""

    def made(split: bool) -> tuple[nn.Module, AdamW, CosineAnnealingLR]:
        model = Mlp(["fa", "fb"], [5, 8, 3])
        some = list(model.parameters())
        groups = [{"params": some[:2]}, {"params": some[2:], "lr": 0.1}]
        optimizer = AdamW(groups if split else some, lr=0.01)
        return model, optimizer, CosineAnnealingLR(optimizer, 30)

    model, optimizer, scheduler = made(True)
    steps(lived(model), optimizer, scheduler)
    value = {"model": state(model), "optimizer": optimizer.state_dict()}
    path = at.save({**value, "scheduler": scheduler.state_dict()})
    here, target, schedule = made(False)
    return Broken(
        path=path, finds=("optimizer-parameters", "scheduler-groups-changed"),
        place=("optimizer", "scheduler"), mend=Tell("group"), cause="different number of parameter",
        targets={"model": here, "optimizer": target, "scheduler": schedule}, cure="groups",
    )  # fmt: skip


def pickle_taken_out_of_an_archive(at: At) -> Broken:
    path = rewritten(at.save(state(sequential())), "data.pkl", lambda _: None)
    return Broken(
        path=path, finds=("zip-no-pickle", "compressed-file"), place=path.name,
        mend=Tell("data.pkl|pickle"), cause="data.pkl|locating file|constants", cure="again|fetch",
    )  # fmt: skip


@variants("link", "absent")
def nothing_there(at: At, how: str) -> Broken:
    path = at.path()
    if how == "link":
        path.symlink_to(at.folder / "gone.pt")
    return Broken(
        path=path, finds="path-missing", place=path.name, mend=Tell("path|exist|link|there"),
        cause="No such file", cure="path",
    )  # fmt: skip


def weights_in_a_pickled_list_of_dicts(at: At) -> Broken:
    """One state dict a fold of a cross-validation: nobody can know which is meant."""
    make = any_model(at)
    folds = [state(lived(make())) for _ in range(3)]
    return Broken(
        path=at.save(folds), finds="ambiguous", place=("0", "1", "model"),
        mend=Tell("source"), targets={"model": make()}, cause="dict-like.*list", cure=r"\[\d\]",
    )  # fmt: skip


def pickled_dict_of_arrays(at: At) -> Broken:
    """Plain pickle, NumPy arrays, protocol 5: as from another framework."""
    truth = state(lived(any_model(at)()))
    path = at.write(pickle.dumps({n: t.numpy() for n, t in truth.items()}, protocol=5), ".pkl")
    return Broken(
        path=path, finds="plain-pickle", place=path.name, mend=written(truth),
        cause="pickle\\.dump|plain pickle", cure=r"pickle\.load|torch\.save",
    )  # fmt: skip
