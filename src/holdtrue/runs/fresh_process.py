"""The same steps in a new process: where its code is found, and what the process does.

Nothing is pickled. The new process imports the module that the step stands in, or runs the script
under another name as multiprocessing does, so that what stands under `if __name__ == "__main__":`
is left out; parts and step are then found by the names they have here.
"""

import ast
import importlib
import json
import os
import runpy
import subprocess
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Report
from holdtrue.runs.held_state import shown
from holdtrue.runs.outside import look_outside
from holdtrue.runs.traces import RERUN, record, step_caller

# A class of the script is called otherwise there; attributes that training changed are found by
# what they do to the steps.
ALLOWED = ("architecture-changed", "class-changed", "code-changed", "loader-changed")
IN_PROGRESS = "HOLDTRUE_PROVING"
_PATIENCE = 600  # seconds
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]);"
    "from holdtrue.runs.fresh_process import main; main(sys.argv[1])"
)


class Job(Struct, frozen=True, kw_only=True):
    """What the new process is to do. Names of objects are dotted, from the module on."""

    kind: str  # import · path · module: how the code is got
    code: str
    saved: str
    folder: str
    first: int
    last: int
    arguments: tuple[str, ...] = ()
    step: str = ""
    after: str = ""
    parts: dict[str, str] = {}
    factory: str = ""


class Outcome(Struct, frozen=True, kw_only=True):
    outside: dict[str, str] = {}  # path → state, of what the step can reach
    refused: Report | None = None  # the restore


class NotPossibleError(Exception):
    """Why the steps cannot be run in a new process."""


def find_code(
    train_step: Callable[..., Any],
    parts: Mapping[str, Any],
    factory: Any = None,
    after_resume: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Where a new process finds the step and the parts: fields of a Job."""
    if isinstance(factory, str):
        module, _, name = factory.partition(":")
        if not name:
            raise ValueError(f'factory={factory!r}: give "package.module:function", or a function')
        return {"kind": "import", "code": module, "factory": name}
    if factory is not None:
        scope = getattr(factory, "__globals__", {})
        return {**_code(factory), "factory": _name_of(factory, scope, "the factory")}
    owner = getattr(train_step, "__self__", None)
    function = getattr(train_step, "__func__", train_step)
    scope = getattr(function, "__globals__", None)
    if scope is None:
        raise NotPossibleError("train_step is no function or method: give factory=")
    if owner is None:
        step = _name_of(train_step, scope, "train_step")
    else:
        step = f"{_name_of(owner, scope, 'the object of train_step')}.{function.__name__}"
    after = "" if after_resume is None else _name_of(after_resume, scope, "after_resume")
    names = {part: _name_of(value, scope, f"part {part!r}") for part, value in parts.items()}
    return {**_code(function), "step": step, "parts": names, "after": after}


def run_fresh(job: Job, scratch: Path) -> Outcome:
    """Start the process and wait for it. Raises NotPossibleError with the reason it gave."""
    given = scratch / "job.json"
    given.write_bytes(msgspec.json.encode(job))
    command = [sys.executable, "-c", _START, str(given), json.dumps(sys.path)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, IN_PROGRESS: "1"},
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotPossibleError(f"it took more than {_PATIENCE} s") from None
    outcome = scratch / "outcome.json"
    if done.returncode != 0 or not outcome.exists():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotPossibleError(said[-1].strip()[:300] if said else f"exit code {done.returncode}")
    found = msgspec.json.decode(outcome.read_bytes(), type=Outcome)
    outcome.unlink()
    return found


def main(given: str) -> None:
    """What the new process does."""
    path = Path(given)
    job = msgspec.json.decode(path.read_bytes(), type=Job)
    scope = _scope(job)
    if job.factory:
        parts, train_step, *more = _found(scope, job.factory)()
    else:
        parts = {part: _found(scope, name) for part, name in job.parts.items()}
        train_step = _found(scope, job.step)
        more = [_found(scope, job.after)] if job.after else []
    try:
        open_checkpoint(job.saved).restore(rng=True, allow=ALLOWED, **parts)
    except HoldtrueError as error:
        outcome = Outcome(refused=error.report)
    else:
        for after_resume in more:
            after_resume()
        states = look_outside(train_step, parts).states
        outside = {
            held.path + held.name(key): shown(value)
            for held, taken in states
            for key, value in taken.items()
        }
        record(Path(job.folder), parts, step_caller(train_step), range(job.first, job.last))
        outcome = Outcome(outside=outside)
    path.with_name("outcome.json").write_bytes(msgspec.json.encode(outcome))


def _scope(job: Job) -> Mapping[str, Any]:
    if job.kind == "import":
        return vars(importlib.import_module(job.code))
    module = types.ModuleType(RERUN)
    sys.modules[RERUN] = module
    sys.argv = list(job.arguments)
    run = runpy.run_path if job.kind == "path" else runpy.run_module
    vars(module).update(run(job.code, run_name=RERUN))
    return vars(module)


def _found(scope: Mapping[str, Any], name: str) -> Any:
    first, *rest = name.split(".")
    value = scope[first]
    for attribute in rest:
        value = getattr(value, attribute)
    return value


def _name_of(value: Any, scope: Mapping[str, Any], what: str) -> str:
    """The name of an object in a module, or of the attribute that it is of a named one."""
    for name, item in scope.items():
        if item is value:
            return name
    for name, item in scope.items():
        if isinstance(item, type | types.ModuleType | types.FunctionType):
            continue
        for attribute, inner in getattr(item, "__dict__", {}).items():
            if inner is value:
                return f"{name}.{attribute}"
    raise NotPossibleError(
        f"{what} has no name in its module by which another process could find it: "
        'give factory="module:function" that returns (parts, train_step)'
    )


def _code(function: Any) -> dict[str, Any]:
    """How the module of a function is got in a new process."""
    name = function.__module__
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if name != "__main__":
        if module is None or spec is None:
            raise NotPossibleError(f"its module {name!r} cannot be imported")
        return {"kind": "import", "code": name}
    if spec is not None:
        return {"kind": "module", "code": spec.name}
    path = getattr(module, "__file__", None)
    if path is None or not Path(path).exists():
        raise NotPossibleError("the code was typed into a shell or notebook: give factory=")
    if not _is_guarded(Path(path).read_text("utf-8", "replace")):
        raise NotPossibleError(
            'the script has no `if __name__ == "__main__":`, so another process would train anew'
        )
    return {"kind": "path", "code": str(Path(path).absolute())}


def _is_guarded(text: str) -> bool:
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return False
    return any(
        isinstance(s, ast.If)
        and isinstance(s.test, ast.Compare)
        and "__name__" in (n.id for n in ast.walk(s.test) if isinstance(n, ast.Name))
        for s in statements
    )
