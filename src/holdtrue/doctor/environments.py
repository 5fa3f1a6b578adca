"""Two environments compared: only what matters to loading, or to resuming bit for bit."""

from collections.abc import Sequence

from holdtrue.findings import Finding, several
from holdtrue.records.environment import Environment

_FLAGS = {
    "deterministic": "torch.use_deterministic_algorithms",
    "cudnn_deterministic": "torch.backends.cudnn.deterministic",
    "cudnn_benchmark": "torch.backends.cudnn.benchmark",
    "matmul_precision": "torch.set_float32_matmul_precision (TF32)",
    "cudnn_tf32": "torch.backends.cudnn.allow_tf32",
    "default_dtype": "torch.set_default_dtype",
}


def compare_environments(
    saved: Environment, here: Environment, moved: Sequence[str] = (), *, resume: bool
) -> list[Finding]:
    """Findings for a restore; a resume is told of all that changes the bits, a load only of torch.

    `moved` says which parts are on another kind of device than they were.

    Distributions, commits and hosts differ every day and break nothing: `diff` shows those.
    """
    found: list[Finding] = []
    if _release(saved.torch) > _release(here.torch):
        found.append(_older(saved, here))
    places = [*_bits(saved, here), *moved] if resume else []
    if places:
        found.append(
            Finding(
                code="environment-changed",
                severity="warning",
                where=places[0],
                what="training may go on with other bits than it would have",
                why="the state is restored exactly, but sums are taken in another order "
                "or by other kernels here",
                fix="use the same versions, device and settings where equal bits matter",
                places=several(places),
            )
        )
    return found


def _bits(saved: Environment, here: Environment) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        ("torch", saved.torch, here.torch),
        ("device", _devices(saved), _devices(here)),
        ("threads (torch.set_num_threads)", saved.threads, here.threads),
    ]
    if saved.build and here.build:
        pairs.append(("CPU capability", saved.build.capability, here.build.capability))
        pairs.append(("CUDA", saved.build.cuda, here.build.cuda))
        pairs.append(("cuDNN", saved.build.cudnn, here.build.cudnn))
    pairs += [
        (name, saved.flags[flag], here.flags[flag])
        for flag, name in _FLAGS.items()
        if flag in saved.flags and flag in here.flags
    ]
    return [f"{name}: saved {a}, here {b}" for name, a, b in pairs if a != b]


def _devices(environment: Environment) -> str:
    kinds = sorted(set(environment.accelerators))
    return ", ".join(kinds) if kinds else f"CPU only, {environment.platform}"


def _release(text: str | None) -> tuple[int, ...]:
    numbers = (text or "").partition("+")[0].split(".")[:2]
    return tuple(int(n) for n in numbers) if all(n.isdecimal() for n in numbers) else ()


def _older(saved: Environment, here: Environment) -> Finding:
    return Finding(
        code="torch-older",
        severity="note",
        where="environment",
        what="the torch here is older than the one that saved",
        why="layers may have gained arguments or buffers since",
        fix="pip install --upgrade torch, if anything does not fit",
        saved=saved.torch,
        expected=here.torch,
    )
