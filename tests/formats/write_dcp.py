"""Run as a program by the tests: several processes write one distributed checkpoint together."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def whole():
    """The state as one process would have it."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "rows": random(7, 5),
        "columns": random(4, 9, dtype=torch.bfloat16),
        "both": random(6, 6),
        "replicated": random(3),
        "empty": random(0, 4),
    }


def write(rank: int, size: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", rank=rank, world_size=size, store=store)
    mesh = init_device_mesh("cpu", (size,))
    layouts = {"rows": [Shard(0)], "columns": [Shard(1)], "both": [Shard(0)],
               "replicated": [Replicate()], "empty": [Shard(1)]}  # fmt: skip
    state = {k: distribute_tensor(t, mesh, layouts[k]) for k, t in whole().items()}
    nested = {"model": state, "step": 12, "rank": torch.tensor(rank), "list": [state["rows"]]}
    dcp.save(nested, storage_writer=FileSystemWriter(f"{folder}/plain"))
    del state["empty"]
    writer = HuggingFaceStorageWriter(f"{folder}/safetensors", save_distributed=True)
    dcp.save(state, storage_writer=writer)
    writer = HuggingFaceStorageWriter(
        f"{folder}/consolidated", save_distributed=True, enable_consolidation=True
    )
    dcp.save(state, storage_writer=writer)
    dist.destroy_process_group()


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    mp.spawn(write, (2, sys.argv[1]), nprocs=2)
