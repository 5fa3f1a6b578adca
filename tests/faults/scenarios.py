"""What is interrupted: each prepares a directory, acts on it, and says what may be there then."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock

import torch
from msgspec import Struct
from torch import nn

import holdtrue
from holdtrue import Keep, Run
from holdtrue.cli import main
from holdtrue.engine import checkpoint as engine_checkpoint
from holdtrue.engine import threads
from holdtrue.errors import HoldtrueError
from holdtrue.formats.step_names import step_name
from holdtrue.limits import override
from holdtrue.storage.commit import STAGING, put_aside
from holdtrue.storage.locating import steps

NEXT = 99  # the step that is saved after the interruption


class Scenario(Struct, frozen=True, eq=False):
    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path], dict[str, Any]]
    check: Callable[[Path], None]  # whatever ended it
    done: Callable[[Path], bool] = lambda root: True  # once `act` has come to its end


class _NoThread(Thread):
    """As where the process is about to exit: the caller's own thread does all the work."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@contextmanager
def small_and_in_order() -> Iterator[None]:
    """Every kind of file in a few kilobytes, all by one thread: the calls come in one order."""
    with (
        override(chunk_bytes=4096, direct_bytes=4096, frozen_bytes=1024, threads=1, writes=1),
        mock.patch.object(threads, "Thread", _NoThread),
    ):
        yield


def parts(value: float) -> dict[str, Any]:
    """A model with a frozen half, an optimizer with state, and a plain value: all by `value`."""
    model = nn.ModuleDict({"frozen": nn.Linear(32, 40, bias=False), "trained": nn.Linear(16, 80)})
    model["frozen"].requires_grad_(False)
    model["frozen"].weight.fill_(0.5)
    optimizer = torch.optim.SGD(model["trained"].parameters(), lr=0.1, momentum=0.9)
    for parameter in model["trained"].parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    set_value(model, optimizer, value)
    return {"model": model, "optimizer": optimizer}


def set_value(model: nn.Module, optimizer: torch.optim.Optimizer, value: float) -> None:
    with torch.no_grad():
        for parameter in model["trained"].parameters():
            parameter.fill_(value)
            optimizer.state[parameter]["momentum_buffer"].fill_(value)


def save_to(run: Run, step: int, value: float | None = None, *, wait: bool = True) -> None:
    set_value(run.parts["model"], run.parts["optimizer"], step if value is None else value)
    run.save(step, {"loss": float(step)}, wait=wait)
    run.flush()


def attempt(act: Callable[[], object]) -> dict[str, Any]:
    """What it raised, as findings. Another exception than ours passes: it ends the child."""
    try:
        act()
    except HoldtrueError as error:
        told = [[f.code, f.what, f.where, f.why, f.fix] for f in error.report.errors]
        return {"error": type(error).__name__, "findings": told}
    return {"error": None, "findings": []}


def check_run(
    run: Path,
    stays: dict[int, set[float]],
    new: dict[int, set[float]] | None = None,
    aside: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """The steps of `stays` verify and are resumable, those of `new` are that or absent, nothing
    else is there; then a resume and a save work, and nothing is left over but what is `aside`."""
    found = look_at(run, stays, new or {})
    given = parts(-1)
    resumed = Run(run, on_error="raise", **given)
    assert resumed.resume() == max(found, default=0)
    assert value_of(given) in (found[max(found)] if found else {-1.0})
    save_to(resumed, NEXT)
    resumed.close()
    found = look_at(run, {**found, NEXT: {float(NEXT)}}, {})
    left = set(os.listdir(run)) - aside
    assert left == {step_name(step) for step in found}, f"beside the steps: {left}"
    assert aside <= set(os.listdir(run))


def look_at(
    run: Path, stays: dict[int, set[float]], new: dict[int, set[float]]
) -> dict[int, set[float]]:
    """What each listed step holds; every one verifies."""
    found = {}
    for step, path in steps(run).items():
        found[step] = {value_in(path)}
    allowed = {step: stays.get(step, set()) | new.get(step, set()) for step in {*stays, *new}}
    assert set(stays) <= set(found) <= set(allowed), f"steps {sorted(found)}"
    for step, values in found.items():
        assert values <= allowed[step], f"step {step} holds {values}"
    return found


def value_in(path: Path) -> float:
    """What a checkpoint of `parts` holds; it verifies, and all of it was saved at once."""
    verified = holdtrue.verify(path)
    assert verified.ok, f"{path.name}: {verified}"
    given = holdtrue.open(path)
    value = given["model"]["trained.weight"][0, 0]
    assert given["model"].keys() == {"frozen.weight", "trained.weight", "trained.bias"}
    assert given["model"]["frozen.weight"].eq(0.5).all()
    momenta = [state["momentum_buffer"] for state in given["optimizer"]["state"].values()]
    assert len(momenta) == 2
    trained = [given["model"][f"trained.{name}"] for name in ("weight", "bias")]
    assert all(t.eq(value).all() for t in (*trained, *momenta)), f"{path.name} is mixed"
    return float(value)


def value_of(given: dict[str, Any]) -> float:
    return float(given["model"]["trained"].weight[0, 0].detach())


def copied(start: Path, root: Path) -> None:
    """A copy with the same hard links."""
    subprocess.run(["cp", "-a", str(start), str(root)], check=True)


# --- saves of a run


def nothing(root: Path) -> None:
    root.mkdir()


def two_steps(root: Path) -> None:
    root.mkdir()
    with small_and_in_order(), Run(root / "run", on_error="raise", **parts(0)) as run:
        save_to(run, 1)
        save_to(run, 2)


def _saves(step: int, *, wait: bool = True, **settings: Any) -> Callable[[Path], dict[str, Any]]:
    def act(root: Path) -> dict[str, Any]:
        with small_and_in_order():
            made: list[Run] = []

            def first() -> None:
                made.append(Run(root / "run", on_error="raise", **settings, **parts(0)))
                save_to(made[0], step, wait=wait)

            told = attempt(first)
            if told["error"]:  # the same training goes on, and saves when it can
                run = (
                    made[0] if made else Run(root / "run", on_error="raise", **settings, **parts(0))
                )
                target = root / "run" / step_name(step)
                # What came after publishing: it is there, and another step has to be the next.
                # Waited for: strace counts the calls of another thread from 1 again.
                number = step + 1 if target.exists() else step
                again = attempt(lambda: save_to(run, number, value=step))
                if again["error"]:  # and those of this thread, which come to the same number once
                    number = step + 1 if target.exists() else step
                    save_to(run, number, value=step)
                made = [run]
            made[0].close()
            return told

    return act


def _resumes_back(root: Path) -> dict[str, Any]:
    with small_and_in_order():

        def first() -> None:
            run = Run(root / "run", on_error="raise", **parts(0))
            assert run.resume(at=1) == 1
            set_value(run.parts["model"], run.parts["optimizer"], 22)
            run.save(2, wait=True)
            run.close()

        return attempt(first)


def _die(*_: object) -> None:
    os._exit(0)


def _two_steps_and_a_killed_save(root: Path) -> None:
    two_steps(root)
    pid = os.fork()
    if pid == 0:
        with small_and_in_order():
            run = Run(root / "run", on_error="raise", **parts(0))
            with mock.patch.object(engine_checkpoint, "write_synced", _die):
                save_to(run, 3)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.listdir(root / "run" / STAGING)


def _check_resumed_back(root: Path) -> None:
    """What was step 2 is listed as that, or put aside; never lost, and never both."""
    run = root / "run"
    aside = run / f"abandoned-{step_name(2)}"
    if aside.exists():
        assert value_in(aside) == 2
        check_run(run, {1: {1.0}}, {2: {22.0}}, aside={aside.name})
    else:
        check_run(run, {1: {1.0}, 2: {2.0}})


# --- one checkpoint, files and commands


def _one_checkpoint(root: Path) -> None:
    root.mkdir()
    with small_and_in_order():
        holdtrue.save(root / "kept", **parts(1))


def _overwrites(root: Path) -> dict[str, Any]:
    with small_and_in_order():
        given = parts(2)
        told = attempt(lambda: holdtrue.save(root / "kept", overwrite=True, **given))
        if told["error"]:
            holdtrue.save(root / "kept", overwrite=True, **given)
        return told


def _check_overwritten(root: Path) -> None:
    place = root / "kept"
    if not place.exists():  # between the two renames; `holdtrue.open` says where it is
        (place,) = put_aside(place)
    assert value_in(place) in (1, 2)
    holdtrue.save(root / "kept", overwrite=True, **parts(3))
    assert value_in(root / "kept") == 3
    assert os.listdir(root) == ["kept"], "the next save clears away what this one left"


Tensors = dict[str, torch.Tensor]
# No two numbers are the same: what was cut can be looked for in the file, and nothing is exchanged.
STATE: Tensors = {
    "frozen": torch.arange(1280.0).view(32, 40),
    "weight": torch.arange(1280.0).view(80, 16) + 2000,
    "bias": torch.arange(80.0) + 4000,
}
OLD: Tensors = {"w": torch.full((3,), 7.0)}


def _torch_file(root: Path) -> None:
    root.mkdir()
    torch.save(STATE, root / "a.pt")


def _cut_torch_file(root: Path) -> None:
    _torch_file(root)
    with (root / "a.pt").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) * 2 // 3)


def _with_old_target(root: Path) -> None:
    _torch_file(root)
    torch.save(OLD, root / "old.pt")
    assert called("convert", root / "old.pt", root / "b.safetensors")[0] == 0
    (root / "old.pt").unlink()


def whole_in(file: Path) -> Tensors:
    """The tensors of the state whose bytes are all in the file: what a salvage has to find."""
    raw = file.read_bytes()
    return {name: tensor for name, tensor in STATE.items() if tensor.numpy().tobytes() in raw}


def holds(path: Path, expected: Tensors) -> bool:
    """Whether it verifies, and holds these tensors with these values and no others."""
    verified = holdtrue.verify(path)
    assert verified.ok, f"{path.name}: {verified}"
    prefix = "model/" if path.is_dir() else ""
    found = {name: tensor.torch() for name, tensor in holdtrue.open(path).tensors.items()}
    return found.keys() == {prefix + name for name in expected} and all(
        torch.equal(found[prefix + name], tensor) for name, tensor in expected.items()
    )


def called(*words: object) -> tuple[int, str]:
    """The command in this process: its exit status and what it printed as its answer."""
    said = StringIO()
    said.fileno = lambda: os.open(os.devnull, os.O_WRONLY)  # type: ignore[method-assign]
    with (
        mock.patch("sys.argv", ["holdtrue", *map(str, words)]),
        redirect_stdout(said),
        redirect_stderr(StringIO()),
    ):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    raise AssertionError("a command exits")


_UNREAD = {"path-unreadable", "permission-denied", "file-unreadable", "read-failed"}
_OF_THE_SOURCE = {"storage-missing", "tensor-past-storage"}


def _refused(words: list[str]) -> list[list[str]]:
    """What the command was refused with, as findings; none where it has done its work. A salvage
    ends with status 1 in both cases: the answer tells."""
    status, said = called(*words, "--json")
    answer = json.loads(said) if said else {}
    parts = ("code", "what", "where", "why", "fix")
    told = [f for f in answer.get("findings", []) if f["severity"] == "error"]
    if "kind" in answer or "removed" in answer:
        assert status == (words[0] == "salvage")
        # What may not be read is lost to a salvage too; it has to say so.
        told = [f for f in told if f["code"] in _UNREAD]
        return [[f.get(part, "") for part in parts] for f in told]
    assert status > 0, said
    # What is wrong with the source has no fix; why the command ended has.
    told = [f for f in told if f["code"] not in _OF_THE_SOURCE]
    return [[f.get(part, "") for part in parts] for f in told] or [["", said, "", "", ""]]


def _commands(*words: str) -> Callable[[Path], dict[str, Any]]:
    def act(root: Path) -> dict[str, Any]:
        with small_and_in_order():
            command = [str(root / w) if "." in w or w == "run" else w for w in words]
            told = _refused(command)
            if told:  # once more; what was published before it was refused stands there already
                again = _refused([*command, *(() if words[0] == "prune" else ("--overwrite",))])
                assert not again, again
            return {"error": told[0][0] or "?" if told else None, "findings": told}

    return act


def _check_written(name: str, *words: str, old: Tensors | None = None) -> Callable[[Path], None]:
    """It holds what was asked for, or it is as it was: absent, or the old one to the last value."""

    def check(root: Path) -> None:
        source, target = root / "a.pt", root / name
        new = whole_in(source)
        assert set(os.listdir(root)) <= {"a.pt", name, STAGING}
        if old is not None or target.exists():
            assert holds(target, new) or (old is not None and holds(target, old)), "other tensors"
        assert not _refused([words[0], str(source), str(target), "--overwrite", *words[1:]])
        assert holds(target, new), "other tensors when it is done again"
        assert set(os.listdir(root)) == {"a.pt", name}, "what this one left is not cleared away"

    return check


def _written(name: str) -> Callable[[Path], bool]:
    return lambda root: holds(root / name, whole_in(root / "a.pt"))


def _prune_start(root: Path) -> None:
    root.mkdir()
    with small_and_in_order(), Run(root / "run", on_error="raise", **parts(0)) as run:
        for step in (1, 2, 3):
            save_to(run, step)


def _saved(*either: int) -> Callable[[Path], bool]:
    return lambda root: bool(set(either) & set(steps(root / "run")))


SCENARIOS = [
    Scenario("first save", nothing, _saves(1),
             lambda r: check_run(r / "run", {}, {1: {1}, 2: {1}}), _saved(1, 2)),
    Scenario("later save with hard links", two_steps, _saves(3),
             lambda r: check_run(r / "run", {1: {1}, 2: {2}}, {3: {3}, 4: {3}}), _saved(3, 4)),
    Scenario("save behind", two_steps, _saves(3, wait=False),
             lambda r: check_run(r / "run", {1: {1}, 2: {2}}, {3: {3}, 4: {3}}), _saved(3, 4)),
    Scenario("save that prunes", two_steps, _saves(3, keep=Keep(last=1)),
             lambda r: _check_pruned(r), _saved(3, 4)),
    Scenario("resume that cleans up, and goes back", _two_steps_and_a_killed_save, _resumes_back,
             _check_resumed_back),
    Scenario("overwriting save", _one_checkpoint, _overwrites, _check_overwritten,
             lambda r: value_in(r / "kept") == 2),
    Scenario("convert to a directory", _torch_file,
             _commands("convert", "a.pt", "b.dir", "--to", "holdtrue"),
             _check_written("b.dir", "convert", "--to", "holdtrue"), _written("b.dir")),
    Scenario("convert over a file", _with_old_target,
             _commands("convert", "a.pt", "b.safetensors", "--overwrite"),
             _check_written("b.safetensors", "convert", old=OLD), _written("b.safetensors")),
    Scenario("salvage", _cut_torch_file, _commands("salvage", "a.pt", "b.pt"),
             _check_written("b.pt", "salvage"), _written("b.pt")),
    Scenario("prune", _prune_start, _commands("prune", "run", "--keep", "last=1"),
             lambda r: check_run(r / "run", {3: {3}}, {1: {1}, 2: {2}})),
]  # fmt: skip


def _check_pruned(root: Path) -> None:
    """The newest of those before is removed only once the new one is there."""
    there = steps(root / "run")
    assert 2 in there or 3 in there or 4 in there
    stays = {2: {2.0}} if not {3, 4} & set(there) else {}
    check_run(root / "run", stays, {1: {1}, 2: {2}, 3: {3}, 4: {3}})


def warm(tmp: Path) -> None:
    """Once through everything, so that no child imports."""
    for number, scenario in enumerate(SCENARIOS):
        root = tmp / f"warm-{number}"
        scenario.prepare(root)
        scenario.act(root)
        scenario.check(root)
        shutil.rmtree(root)
