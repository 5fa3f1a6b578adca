"""Processes and threads that save, resume, verify, prune and read one run, all at once.

Started as a program with a folder, seconds and a seed; prints what happened as JSON. It loads torch
once and forks. Every checkpoint holds one number in every place, so that one that mixes two saves,
or half of one, tells. Every step has a number of its own, whoever saves it.
"""

import faulthandler
import json
import logging
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import holdtrue
from holdtrue.cli.prune import command as prune
from holdtrue.formats.step_names import step_name
from holdtrue.storage.locating import steps as published

KEEP = holdtrue.Keep(last=3, best=2, by="loss", every=25)
NONE_YET = ("path-missing", "directory-unknown", "not-a-run")  # as a run without steps is told
RULES = "last=3,best=2,by=loss,every=25"
THREADS = 2
_context = multiprocessing.get_context("fork")
_steps = _context.Value("q", 0)


class Torn(Exception):
    """What must never be: a checkpoint, or a model, that is not one save and nothing else."""


def parts() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 64))
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "optimizer": optimizer, "said": {"step": 0}}


def write_everywhere(state: dict[str, Any], step: int) -> None:
    """The frozen layer changes every tenth step: its file is linked in between."""
    with torch.no_grad():
        for name, tensor in state["model"].named_parameters():
            tensor.fill_(step // 10 if name.startswith("2.") else step)
    state["said"]["step"] = step


def check(tensors: dict[str, torch.Tensor], said: int, step: int) -> None:
    wrong = [
        name
        for name, tensor in tensors.items()
        if not bool((tensor == (step // 10 if name.startswith("2.") else step)).all())
    ]
    if wrong or said != step:
        raise Torn(f"step {step}: {wrong}, and it says {said}")


def loss(step: int) -> float:
    return float(step * 7919 % 1009)


# What it is told as when what was chosen is removed before it is read: one of its files is not
# there, or nothing is. Bytes that differ are never told so.
GONE = {"path-missing", "file-missing", "manifest-missing", "not-a-checkpoint"}


def code(error: holdtrue.HoldtrueError, *meant: str) -> str:
    """Of what may happen here. Anything else, damage above all, is the end of this process."""
    codes = {finding.code for finding in error.report.errors if not _lost_half_way(finding)}
    if not error.report.errors or not codes <= set(meant):
        raise error
    return error.report.errors[0].code


def _lost_half_way(finding: holdtrue.Finding) -> bool:
    """A file that went while it was restored from in one reading, by what the system said."""
    at_once = finding.code in ("target-unusable", "file-unreadable")
    return at_once and "No such file" in finding.why


def require_removed(report: holdtrue.Report | None) -> int:
    """How many steps a resume passed over: each is gone by now, or it was wrong to."""
    found = report.findings if report is not None else ()
    over = [Path(f.where) for f in found if f.code == "checkpoint-passed-over"]
    there = [str(path) for path in over if path.exists()]
    if there:
        raise Torn(f"passed over, and still there: {there}: {report}")
    return len(over)


def writer(run: Path, chance: random.Random, over: Callable[[], bool], log: Any) -> Counter[str]:
    """Takes the run when it is free, resumes, saves with threads, lets it go."""
    counts: Counter[str] = Counter()
    while not over():
        state = parts()
        guard = threading.Lock()
        ended = threading.Event()
        with holdtrue.Run(run, keep=KEEP, on_error="raise", **state) as mine:
            try:
                resumed = mine.resume()
            except holdtrue.HoldtrueError as error:
                # All that were listed are gone by now: others have saved newer ones.
                counts[f"resume: {code(error, *GONE)}"] += 1
                continue
            counts["passed over, being removed"] += require_removed(mine.report)
            if resumed:
                check(dict(state["model"].named_parameters()), state["said"]["step"], resumed)
                counts["resumed"] += 1

            def save_some(some: int, mine: Any = mine, state: Any = state) -> None:
                for _ in range(some):
                    with guard:  # one changes what the other saves
                        if ended.is_set():
                            return
                        with _steps.get_lock():
                            _steps.value += 1
                            step = int(_steps.value)
                        write_everywhere(state, step)
                        try:
                            saving = mine.save(
                                step, {"loss": loss(step)}, wait=chance.random() < 0.3
                            )
                        except holdtrue.SaveError as error:
                            # Or another one saved between this one's resume and its first save.
                            counts[f"refused: {code(error, 'run-held', 'later-steps-there')}"] += 1
                            ended.set()
                            return
                    saving.wait()
                    os.write(log, f"{step}\n".encode())
                    counts["saved"] += 1
                    with guard:  # nobody else writes now: the newest is one of ours
                        if chance.random() < 0.3 and not ended.is_set():
                            again = mine.resume()
                            check(
                                dict(state["model"].named_parameters()),
                                state["said"]["step"],
                                again,
                            )
                            if again < step or require_removed(mine.report):
                                raise Torn(f"step {step} is durable, and {again} was resumed")
                            counts["resumed between saves"] += 1

            def look(mine: Any = mine) -> None:
                """Beside the saves of the same Run, by its own functions and the public ones."""
                for _ in range(3):
                    one_look(mine, chance, counts)

            saves = [lambda: save_some(chance.randint(1, 6))] * THREADS
            in_threads([*saves, look])
        time.sleep(chance.uniform(0, 0.3))
    return counts


def one_look(mine: holdtrue.Run, chance: random.Random, counts: Counter[str]) -> None:
    kind = chance.choice(("latest", "best", "verify", "restore"))
    try:
        if kind == "verify":
            there = mine.steps()
            path = mine.path / step_name(chance.choice(there)) if there else mine.path
            said = holdtrue.verify(path)
            if not said.ok:
                code(holdtrue.DamageError(said), *GONE)
                raise_if_there(path, holdtrue.DamageError(said))
        elif kind == "restore":
            state = parts()
            found = holdtrue.open(mine.path)
            found.restore(**state, rng=False)
            check(dict(state["model"].named_parameters()), state["said"]["step"], found.step or 0)
        else:
            found = mine.latest() if kind == "latest" else mine.best()
            if found is not None:
                check(found["model"], found["said"]["step"], found.step)
    except holdtrue.HoldtrueError as error:
        counts[f"beside saves: {kind}: {code(error, *NONE_YET, *GONE)}"] += 1
        raise_if_there(Path(error.report.subject), error)
        return
    counts[f"beside saves: {kind}"] += 1


def raise_if_there(path: Path, error: holdtrue.HoldtrueError) -> None:
    """A step that is there is whole: only of one that was removed may something be missing."""
    if path.name.startswith("step-") and path.exists():
        raise error


def reader(run: Path, chance: random.Random, over: Callable[[], bool], log: Any) -> Counter[str]:
    """Opens, verifies and restores whatever is there."""
    counts: Counter[str] = Counter()

    def read() -> None:
        state = parts()
        while not over():
            found = published(run)
            if not found:
                time.sleep(0.01)
                continue
            step = chance.choice(list(found))
            try:
                read_one(step, found[step], state)
            except holdtrue.HoldtrueError as error:
                code(error, *GONE)
                raise_if_there(run / step_name(step), error)
                counts["removed while it was read"] += 1

    def read_one(step: int, path: Path, state: dict[str, Any]) -> None:
        kind = chance.choice(("verify", "restore", "restore while", "read"))
        if kind == "verify":
            report = holdtrue.verify(path)
            if not report.ok:
                raise holdtrue.DamageError(report)
            counts["verified"] += 1
            return
        checkpoint = holdtrue.open(path)
        if kind == "read":
            tensors, said = checkpoint["model"], checkpoint["said"]["step"]
        else:
            how: Any = "while" if kind == "restore while" else "first"
            checkpoint.restore(**state, verify=how, rng=False)
            tensors, said = dict(state["model"].named_parameters()), state["said"]["step"]
        check(tensors, said, step)
        counts["read" if kind == "read" else "restored"] += 1

    in_threads([read] * THREADS)
    return counts


def pruner(run: Path, chance: random.Random, over: Callable[[], bool], log: Any) -> Counter[str]:
    """The command; while one saves it is refused. And a Run that only looks."""
    counts: Counter[str] = Counter()
    looking = holdtrue.Run(run, keep=KEEP)
    while not over():
        try:
            with Path(os.devnull).open("w") as nowhere:
                sys.stdout, before = nowhere, sys.stdout
                try:
                    prune.main([str(run), "--keep", RULES], standalone_mode=False)
                finally:
                    sys.stdout = before
            counts["pruned by the command"] += 1
        except holdtrue.HoldtrueError as error:
            counts[f"prune: {code(error, 'run-held', *NONE_YET)}"] += 1
        for look in (looking.latest, looking.best):
            try:
                found = look()
            except holdtrue.HoldtrueError as error:
                counts[f"{look.__name__}: {code(error, *GONE)}"] += 1
                continue
            counts[f"looked for {look.__name__}"] += found is not None
        time.sleep(chance.uniform(0, 0.05))
    return counts


def in_threads(works: list[Callable[[], None]]) -> None:
    """All at once; what one of them raises is raised."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def born(work: Any, run: Path, seed: str, until: float, log: int) -> tuple[int, int]:
    """A process that does it, and the pipe through which it says how it went."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return pid, told
    faulthandler.dump_traceback_later(until - time.monotonic() + 60, exit=True)  # a deadlock
    try:
        counts = work(run, random.Random(seed), lambda: time.monotonic() > until, log)
        os.write(tell, json.dumps(counts).encode())
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def expected(saved: list[int]) -> list[int]:
    """What the rules keep of all that was ever saved."""
    kept = set(sorted(saved)[-3:]) | {step for step in saved if step % 25 == 0}
    return sorted(kept | set(sorted(saved, key=lambda s: (loss(s), -s))[:2]))


def main(folder: Path, seconds: float, seed: str) -> None:
    torch.set_num_threads(1)
    logging.getLogger("holdtrue").setLevel(logging.ERROR)
    run = folder / "run"
    warm = parts()
    with holdtrue.Run(folder / "warm", **warm) as first:
        first.save(1, wait=True)
        first.resume()
    log = os.open(folder / "saved", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    until = time.monotonic() + seconds
    crowd = [writer] * 3 + [reader] * 4 + [pruner]
    children = [born(work, run, f"{seed} {i}", until, log) for i, work in enumerate(crowd)]
    counts: Counter[str] = Counter()
    for pid, told in children:
        with os.fdopen(told) as pipe:
            said = pipe.read()
        if os.waitpid(pid, 0)[1] or not said:
            raise SystemExit(f"process {pid} failed or hung")
        counts += Counter(json.loads(said))
    saved = [int(line) for line in (folder / "saved").read_text().split()]
    for step, path in published(run).items():
        if not holdtrue.verify(path).ok:
            raise SystemExit(f"step {step} does not verify")
    left = sorted(p.name for p in run.iterdir() if not p.name.startswith("step-"))
    there = {"there": list(published(run)), "expected": expected(saved), "left": left}
    print(json.dumps({"counts": counts, "logged": len(saved), **there}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
