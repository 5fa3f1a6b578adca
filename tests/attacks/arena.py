"""A process that has everything loaded and forks a child for each attack.

`python -m attacks.arena PLACE` reads [family, name, thorough], a line of JSON, and answers each
with another.
Forked from here, children begin with warm libraries and cannot harm one another.
"""

import contextlib
import json
import os
import resource
import select
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 1 << 20
PATIENCE = 120  # seconds; what takes so long hangs
MEMORY = 256 * MIB  # above what honest files take, of an attack's child
# Budgets of a file, made small so that holding them can be seen.
BUDGETS = {"entries": 50_000, "memo": 50_000, "opcodes": 1_000_000, "build_calls": 5_000}
BUDGETS |= dict.fromkeys(("pickle_bytes", "header_bytes", "manifest_bytes"), 16 * MIB)
BUDGETS |= dict.fromkeys(("inflated_bytes", "expanded_bytes"), 64 * MIB)


def forked(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `act` gives in a child of its own; {"died": …} where it does not live to say it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            said = act()
        except BaseException:
            said = {"failed": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(said, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        raw, end = b"", time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if select.select([pipe], [], [], 1)[0]:
                block = os.read(pipe.fileno(), 1 << 20)
                if not block:
                    break
                raw += block
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"died": f"nothing said within {PATIENCE} s"}
    status = os.waitpid(child, 0)[1]
    try:
        return dict(json.loads(raw))
    except ValueError:
        return {"died": f"status {status}"}


def peak() -> int:
    """The most memory that this process held since the mark was last reset, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> int:
    # Where it may not be reset, the peak is that of the whole process: `before` is, too.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def contents(folder: Path) -> dict[str, Any]:
    """Every name beneath a folder, with what would change if it were touched."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        plain = stat.S_ISREG(status.st_mode) and status.st_size < MIB
        kept = path.read_bytes() if plain else b""
        found[str(path.relative_to(folder))] = (
            status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink, kept
        )  # fmt: skip
    return found


def try_attack(folder: Path, path: Path, thorough: bool) -> dict[str, Any]:
    """In a child of its own: the gauntlet, watched."""
    from attacks import gauntlet

    out = folder.parent / "out"
    out.mkdir()
    return watched(lambda: gauntlet.run(path, out, thorough), [folder], [out])


def try_run(folder: Path, path: Path) -> dict[str, Any]:
    """The same with what writes into a run: its own folder is its to write, and no other."""
    from attacks import gauntlet

    return watched(lambda: gauntlet.as_run(path, folder), [], [folder, folder.parent / "out"])


def watched(act: Callable[[], Any], reading: list[Path], writing: list[Path]) -> dict[str, Any]:
    import attack_package

    from attacks.watch import Watch

    attack_package.RAN.clear()
    os.chdir(writing[-1])
    watch = Watch(reading, writing)
    before = reset_peak()
    watch.arm()
    trial = act()
    return {
        "codes": trial.codes,
        "whys": {key: text[:3000] for key, text in trial.whys.items()},
        "bare": trial.bare,
        "done": trial.done,
        "seen": [*dict.fromkeys(watch.seen), *(f"ran {what}" for what in attack_package.RAN)],
        "grown": peak() - before,
    }


def face(family: str, name: str, thorough: bool, place: Path) -> dict[str, Any]:
    """Make an attack in one child, run the gauntlet over it in another; what came of both."""
    from attacks.attack import FAMILIES, CannotMake, make

    root = place / f"{family}-{len(os.listdir(place))}".replace(" ", "-")
    folder, sentinel = root / "attack", root / "outside"
    folder.mkdir(parents=True)
    sentinel.mkdir()
    (sentinel / "secret.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}      ")
    (sentinel / "secret").write_bytes(b"secret")

    def made() -> dict[str, Any]:
        try:
            return {"path": str(make(FAMILIES[family][name], folder))}
        except CannotMake as error:
            return {"cannot": str(error)}

    said = forked(made)
    if "path" not in said:
        return said
    before = contents(folder), contents(sentinel)
    began = time.monotonic()
    result = forked(lambda: try_attack(folder, Path(said["path"]), thorough))
    result["seconds"] = time.monotonic() - began
    result["changed"] = [
        name for old, now in zip(before, (contents(folder), contents(sentinel)), strict=True)
        for name in old.keys() | now.keys() if old.get(name) != now.get(name)
    ]  # fmt: skip
    if "codes" in result and (thorough or family == "run"):
        result = both(result, forked(lambda: try_run(folder, Path(said["path"]))))
        result["changed"] += harmed(before[1], contents(sentinel))
    canary = Path(os.environ["HOLDTRUE_CANARY"])
    result["ran"] = canary.exists()
    canary.unlink(missing_ok=True)
    return result


def harmed(old: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a run changed outside of it. That it removed its own name of a file with another name
    outside is no harm."""
    return [
        f"by a run: {name}"
        for name in old.keys() | now.keys()
        if name not in old
        or name not in now
        or (*old[name][:3], *old[name][4:]) != (*now[name][:3], *now[name][4:])
        or now[name][3] > old[name][3]
    ]


def both(looked: dict[str, Any], ran: dict[str, Any]) -> dict[str, Any]:
    """What came of looking into an attack, and of running in it."""
    if "codes" not in ran:
        return ran
    joined = {name: looked[name] | ran[name] for name in ("codes", "whys")}
    joined |= {name: looked[name] + ran[name] for name in ("bare", "done", "seen")}
    return {**looked, **joined, "grown": max(looked["grown"], ran["grown"])}


def warm(place: Path) -> None:
    """Load what the gauntlet uses, so that no child is the first to import it."""
    import attack_package  # a caller's own package, full of what must not run
    import torch

    from attacks import families, gauntlet

    torch.set_num_threads(1)
    assert families.__all__
    assert attack_package.RAN == []
    warming = place / "warm"
    warming.mkdir()
    import holdtrue
    from holdtrue.engine.new_file import NewFile

    families.manifests.honest()
    families.recipes.honest()
    live = gauntlet.small()
    holdtrue.save(warming / "kept", **live)
    torch.save(live["model"].state_dict(), warming / "w.pt")
    torch.save(live["model"], warming / "m.pt")
    for name in ("kept", "w.pt", "m.pt"):
        (warming / f"out-{name}").mkdir()
        trial = gauntlet.run(warming / name, warming / f"out-{name}")
        assert not trial.bare, trial.bare
    (warming / "run").mkdir()
    with holdtrue.Run(warming / "run", **gauntlet.small()) as run:
        run.save(1, wait=True)
    trial = gauntlet.as_run(warming / "run", warming)
    assert not trial.bare, trial.bare
    # Looks up `fallocate` in the C library, once, which large files need.
    NewFile(warming / "large", 1 << 20, direct=True).close()


def main() -> None:
    place = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")  # what a library prints must not be taken for an answer
    os.dup2(2, 1)
    warm(place)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        family, name, thorough = json.loads(line)
        print(json.dumps(face(family, name, thorough, place)), file=answers, flush=True)


if __name__ == "__main__":
    main()
