"""Folders: shards, ranks, and the checkpoints of a run side by side."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.checks import holds
from benchmarks.diagnosis.models import ConvNet, any_model, gpt2, lived, llama, sequential, state

_AGAIN = "fetch|download|copy|salvage|earlier|previous|before"


def _sharded(at: At) -> tuple[Path, Any]:
    """What save_pretrained writes when it has to split."""
    model = lived(llama(96))
    folder = at.folder / at.word()
    model.save_pretrained(folder, max_shard_size="12KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder, model


def _shard(at: At, folder: Path) -> Path:
    return at.rng.choice(sorted(folder.glob("model-*.safetensors")))


@variants("folder", "index")
def shard_missing(at: At, asked: str) -> Broken:
    folder, _ = _sharded(at)
    gone = _shard(at, folder)
    gone.unlink()
    path = folder if asked == "folder" else folder / "model.safetensors.index.json"
    return Broken(
        path=path, finds="shard-missing", place=gone.name, mend=Tell(_AGAIN), cause=f"{gone.name}",
        cure=_AGAIN,
    )  # fmt: skip


def shard_cut_short(at: At) -> Broken:
    folder, _ = _sharded(at)
    cut = _shard(at, folder)
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) * 2 // 3])
    return Broken(
        path=folder, finds=("shard-unreadable", "safetensors-header-damaged", "file-truncated"),
        place=cut.name, mend=Tell(_AGAIN), cause=f"{cut.name}.*(short|trunc)", cure=_AGAIN,
    )  # fmt: skip


def shard_is_a_pointer(at: At) -> Broken:
    """git clone without git-lfs."""
    folder, _ = _sharded(at)
    gone = _shard(at, folder)
    oid = at.rng.randbytes(32).hex()
    gone.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 4096\n")
    return Broken(
        path=folder, finds=("git-lfs-pointer", "shard-unreadable"), place=gone.name,
        mend=Tell("lfs"), cause="lfs", cure="lfs pull",
    )  # fmt: skip


def shards_swapped_between_models(at: At) -> Broken:
    """One shard comes from a model of another size: the index names what it does not hold."""
    folder, _ = _sharded(at)
    shards = sorted(folder.glob("model-*.safetensors"))
    one, other = at.rng.sample(shards, 2)
    shutil.copy(one, other)
    return Broken(
        path=folder, finds=("tensor-not-in-shard", "tensor-in-two-shards"), place=other.name,
        mend=Tell(_AGAIN + "|index"), cause="not in|missing", cure=_AGAIN + "|index",
    )  # fmt: skip


def index_damaged(at: At) -> Broken:
    folder, _ = _sharded(at)
    index = folder / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text[: len(text) * 2 // 3])
    return Broken(
        path=folder, finds=("index-damaged", "json-damaged"), place=index.name, mend=Tell(_AGAIN),
        cause="JSON|index|delimiter|Expecting", cure=_AGAIN,
    )  # fmt: skip


def shard_taken_for_the_whole(at: At) -> Broken:
    folder, _ = _sharded(at)
    path = _shard(at, folder)
    return Broken(
        path=path, finds=("shard-alone", "missing-keys"), place=(path.name, "model"),
        mend=Tell("folder|director|index|shard|other"), targets={"model": llama(96)},
        cause="shard|of the 0000", cure="folder|index|director|all",
    )  # fmt: skip


def _dcp(at: At) -> Path:
    import torch.distributed.checkpoint as dcp

    folder = at.folder / at.word()
    dcp.save({"model": lived(ConvNet(16)).state_dict()}, checkpoint_id=str(folder), no_dist=True)
    return folder


@variants("data", "metadata", "cut")
def distributed_checkpoint(at: At, what: str) -> Broken:
    folder = _dcp(at)
    (data,) = folder.glob("*.distcp")
    if what == "data":
        data.unlink()
    elif what == "metadata":
        (folder / ".metadata").unlink()
    else:
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    finds = {"data": "shard-missing", "metadata": "dcp-unfinished",
             "cut": ("file-truncated", "dcp-item-damaged", "bytes-missing")}[what]  # fmt: skip
    return Broken(
        path=folder, finds=finds,
        place={"metadata": (".metadata", folder.name)}.get(what, (data.name,)),
        mend=Tell(_AGAIN + r"|rank|\.metadata"),
        cause={"metadata": r"\.metadata"}.get(what, "distcp"), cure=_AGAIN + "|rank",
    )  # fmt: skip


def _epochs(at: At, make: Any, count: int = 4) -> list[Path]:
    """The folder of a plain training loop."""
    folder = at.folder / "run"
    folder.mkdir()
    model, paths = make(), []
    for epoch in range(count):
        lived(model)
        path = folder / f"epoch_{epoch:03}.pt"
        torch.save({"epoch": epoch, "state_dict": state(model)}, path)
        paths.append(path)
    return paths


@variants("best.pt", "model_best.pth", "best.safetensors")
def best_equals_last(at: At, name: str) -> Broken:
    """The best weights were an alias of the live ones when they were written."""
    from safetensors.torch import save_file

    folder, tensors = at.folder / "run", state(lived(any_model(at)()))
    folder.mkdir()
    for file in (name, name.replace("model_best", "last").replace("best", "last")):
        if name.endswith(("pt", "pth")):
            torch.save(tensors, folder / file)
        else:
            save_file(tensors, folder / file)
    return Broken(
        path=folder, finds="best-equals-last", place=name, deep=True,
        mend=Tell("copy|clone|alias|same"), cause="identical|equal|same", cure="copy|clone",
    )  # fmt: skip


@variants(0.0, 0.4, 0.9)
def last_of_a_run_cut_short(at: At, part: float) -> Broken:
    """Killed while saving."""
    paths = _epochs(at, any_model(at))
    data = paths[-1].read_bytes()
    paths[-1].write_bytes(data[: int(len(data) * part)])
    return Broken(
        path=paths[0].parent, finds=("checkpoint-damaged", "damage", "file-empty"),
        place=paths[-1].name, mend=Tell(_AGAIN + "|salvage"), cause="trunc|empty|smaller",
        cure=_AGAIN,
    )  # fmt: skip


@variants("epoch_004.pt.tmp", "epoch_004.pt.part", ".epoch_004.pt.swp.tmp")
def leftover_of_a_killed_save(at: At, name: str) -> Broken:
    paths = _epochs(at, sequential)
    data = paths[-1].read_bytes()
    (paths[0].parent / name).write_bytes(data[: len(data) // 2])
    return Broken(
        path=paths[0].parent, finds="half-name", place=name,
        mend=Tell("delete|remove|rm |leftover|killed"), cause="partial|unfinished|temporary",
        cure="delete|remove",
    )  # fmt: skip


def pointer_to_nothing(at: At) -> Broken:
    """DeepSpeed's `latest` names a directory that is not there."""
    folder = at.folder / "run"
    (folder / "global_step100").mkdir(parents=True)
    torch.save(
        {"module": state(sequential())}, folder / "global_step100" / "mp_rank_00_model_states.pt"
    )
    (folder / "latest").write_text("global_step200")
    return Broken(
        path=folder, finds=("pointer-dangling", "shard-missing"),
        place=("latest", "global_step200"), mend=Tell("global_step100|write|point|there is"),
        cause="global_step200", cure="global_step100",
    )  # fmt: skip


@variants("optimizer.pt", "model.safetensors")
def trainer_checkpoint_incomplete(at: At, gone: str) -> Broken:
    """A Hugging Face Trainer's checkpoint-500 without one of its files."""
    folder = at.folder / "checkpoint-500"
    model = lived(gpt2())
    model.save_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "epoch": 1.0}))
    (folder / gone).unlink()
    finds = (
        ("optimizer-absent", "resume-completeness")
        if gone == "optimizer.pt"
        else ("weights-absent", "resume-completeness")
    )
    return Broken(
        path=folder, finds=finds, place=("optimizer", "model", folder.name),
        mend=Tell("optimizer" if gone == "optimizer.pt" else "model|weights|safetensors"),
        cause=gone.split(".")[0], cure=_AGAIN,
    )  # fmt: skip


@variants("nothing", "text")
def folder_without_a_checkpoint(at: At, what: str) -> Broken:
    folder = at.folder / at.word(3)
    folder.mkdir()
    if what == "text":
        (folder / "README.md").write_text("# notes\n")
        (folder / "config.json").write_text("{}")
    return Broken(
        path=folder, finds="directory-unknown", place=folder.name,
        mend=Tell("checkpoint|path|file"), cause="director", cure="path|file",
    )  # fmt: skip


def one_of_a_run_is_a_web_page(at: At) -> Broken:
    paths = _epochs(at, sequential)
    wrong = at.rng.choice(paths)
    wrong.write_text("<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>")
    return Broken(
        path=wrong.parent, finds=("web-page", "checkpoint-damaged"), place=wrong.name,
        mend=Tell("fetch|page|again|download"), cause="page|html", cure=_AGAIN,
    )  # fmt: skip


def index_without_folder(at: At) -> Broken:
    """The index alone was downloaded."""
    folder, _ = _sharded(at)
    for shard in folder.glob("model-*.safetensors"):
        shard.unlink()
    return Broken(
        path=folder, finds="shard-missing", place="model-00001", mend=Tell(_AGAIN),
        cause="model-00001", cure=_AGAIN,
    )  # fmt: skip


def folder_of_another_model(at: At) -> Broken:
    """A whole sharded model, for a model with more tokens: everything else fits."""
    folder, model = _sharded(at)
    truth = state(model)
    return Broken(
        path=folder, finds="shape-mismatch", place=("embed_tokens", "lm_head"),
        mend=holds({n: t for n, t in truth.items() if "embed_tokens" not in n}, but="lm_head"),
        targets={"model": llama(99)}, cause="size mismatch for|vocab|token", cure="resize|vocab",
    )  # fmt: skip
