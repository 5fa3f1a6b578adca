"""Files and models for the tests of fitting: every printed call is executed and compared."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import holdtrue


def fill(model: nn.Module, seed: int = 1) -> nn.Module:
    """Values that tell every tensor from every other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            elif tensor.dtype is not torch.bool:
                tensor.fill_(7)
    return model


def saved(content: object, folder: Path) -> str:
    torch.save(content, folder / "file.pt")
    return str(folder / "file.pt")


def command_of(report: holdtrue.Report) -> str:
    """The call that the report proposes; "" where it has none."""
    commands = {f.command for f in report.findings if ".restore(" in f.command}
    assert len(commands) <= 1, commands
    return commands.pop() if commands else ""


def run(command: str, model: nn.Module) -> holdtrue.Report:
    return eval(command, {"holdtrue": holdtrue, "model": model})  # noqa: S307


def same(model: nn.Module, expected: Mapping[str, Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


def codes(report: holdtrue.Report, *severities: str) -> set[str]:
    return {f.code for f in report.findings if not severities or f.severity in severities}
