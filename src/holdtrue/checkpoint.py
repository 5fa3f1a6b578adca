"""A checkpoint that has been opened: look at it, take values out, put it into live objects."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from holdtrue.collection import put_off
from holdtrue.engine.telling import Tell
from holdtrue.errors import DamageError, HoldtrueError, fail, torch_missing
from holdtrue.findings import Finding, Report, report
from holdtrue.formats.checkpoint_directory import read_manifest, to_view
from holdtrue.formats.module_tree import has_packed, is_module, state_dict
from holdtrue.formats.opening import read as read_any
from holdtrue.formats.proven import Proven
from holdtrue.formats.source import reading
from holdtrue.formats.tree_map import map_tensors
from holdtrue.formats.view import LazyTensor, View
from holdtrue.records.environment import Environment
from holdtrue.records.manifest import NAME, Manifest
from holdtrue.records.metrics import manifest_metrics
from holdtrue.records.trust import Trust, trust
from holdtrue.records.values import Decoding, decode
from holdtrue.storage.locating import find, is_ours
from holdtrue.stored import StoredTensor, StoredTensors

if TYPE_CHECKING:
    import torch


class Checkpoint:
    """An opened checkpoint. Its manifest has been verified; tensors are verified as they are read.

    `ck["classes"]` is a part's value: a module gives its state_dict, detached as torch's own is, an
    optimizer its state by parameter name, everything else what was saved.
    """

    def __init__(
        self,
        path: Path,
        view: View,
        agreed: Trust,
        manifest: Manifest | None,
        given: str = "",
        passed: tuple[Finding, ...] = (),
    ) -> None:
        self.path, self._view, self._agreed, self._manifest = path, view, agreed, manifest
        self._given = given or str(path)  # the path as the caller wrote it
        self._passed = passed  # what is wrong with newer ones of the run
        self._proven = Proven()

    @property
    def format(self) -> str:
        """What it is: "holdtrue", "torch-zip", "safetensors", …"""
        return self._view.format

    @property
    def about(self) -> dict[str, Any]:
        """What the format says of itself: versions, byte order, writer."""
        return self._view.about

    @property
    def step(self) -> int | None:
        return self._manifest.step if self._manifest else None

    @property
    def created(self) -> str:
        """When it was saved: UTC, ISO 8601; "" where the format does not say."""
        return self._manifest.created if self._manifest else ""

    @property
    def metrics(self) -> dict[str, Any]:
        return manifest_metrics(self._manifest) if self._manifest else {}

    @property
    def manifest(self) -> Manifest | None:
        """holdtrue's own manifest; None for files of other formats."""
        return self._manifest

    @property
    def environment(self) -> Environment | None:
        """What wrote it: machine, libraries, flags, command, commit; None for other formats."""
        return self._manifest.environment if self._manifest else None

    @property
    def view(self) -> View:
        """Everything as data: plain values, inert records, lazy tensors."""
        return self._view

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that `checkpoint[name]` takes."""
        return tuple(self._manifest.parts if self._manifest else foreign_parts(self._view))

    @property
    def tensors(self) -> StoredTensors:
        foreign, reading = self._manifest is None, self._unless_replaced
        return StoredTensors(self._view.tensors, self._proven, foreign, reading)

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def __repr__(self) -> str:
        step = "" if self.step is None else f" step {self.step},"
        return f"<checkpoint {self.path}:{step} {', '.join(self.parts)}>"

    def __getitem__(self, part: str) -> Any:
        """The value of a part, its tensors read and verified."""
        if part not in self.parts:
            raise KeyError(f"{self.path} has no part {part!r}; it has {', '.join(self.parts)}")
        with self._unless_replaced():
            return self._value(part)

    def _value(self, part: str) -> Any:
        if self._manifest is None:
            return self._foreign_value(foreign_parts(self._view)[part], part)
        record = self._manifest.parts[part]
        if record.kind == "module":
            kept = self._manifest.tensors
            names = {n: k for n, k in record.state.get("entries", {}).items() if kept[k].persistent}
            tensors = self._fresh(names.values(), detached=True)
            return OrderedDict((name, tensors(key)) for name, key in names.items())
        if record.kind == "optimizer":
            moments = record.state.get("state", {})
            value = self._values(record.state, part)
            state = {name: value(node) for name, node in moments.items()}
            groups = [
                {**value(g["settings"]), "params": g["params"]} for g in record.state["groups"]
            ]
            return {"state": state, "param_groups": groups}
        return self._values(record.state, part)(record.state)

    @put_off()
    def restore(
        self,
        *,
        allow: str | Iterable[str] = (),
        only: str | Iterable[str] = (),
        rename: Mapping[str, str] | None = None,
        trust: Iterable[type | str] = (),
        rng: bool | None = None,
        probe: Any = False,
        source: Mapping[str, str] | None = None,
        on_conflict: Literal["file", "code"] = "file",
        verify: Literal["first", "while"] = "first",
        progress: Tell | None = None,
        **targets: Any,
    ) -> Report:
        """Put the saved state into live objects, in place: all of it, or nothing.

        `allow` accepts differences by their finding codes. `only` restricts modules to names that
        match a pattern; `rename` maps saved names, {"old.*": "new.*"}. `rng` restores the global
        random states; by default when an optimizer is among the targets, since that is a resume.
        `probe=True` runs the probe that was saved, with the restored model (`probe=inputs` where
        they were too large to keep), and adds what it says to the report. `source` says, for files
        of other formats, which state dict a target is filled from: {"model": "ema"}. `on_conflict`
        says whose settings of optimizers and schedulers are used where they differ. What is filled
        of a module on the meta device gets memory on the CPU first. `progress` is told bytes done
        and bytes in all, from any thread; `holdtrue.ProgressBar()` shows them.

        Raises RestoreError when something does not fit, and DamageError when bytes on disk are not
        those that were written; either way nothing has been changed. `verify="while"` reads every
        byte once instead of twice, and compares it on its way into the target: damage is found just
        the same, but the target is then partly overwritten, and the finding is `target-unusable`.
        """
        if find_spec("torch") is None:
            raise torch_missing("restore")
        from torch.optim import Optimizer

        from holdtrue.capture.parts import RNG
        from holdtrue.restore.apply import apply
        from holdtrue.restore.fitting import explained
        from holdtrue.restore.on_meta import fills_only, memory_for
        from holdtrue.restore.plan import Choice
        from holdtrue.restore.request import Request, plan_request

        patterns = tuple(p for p in _several(only) if p)
        if on_conflict not in ("file", "code"):
            raise ValueError(f'on_conflict={on_conflict!r}: give "file" or "code"')
        if verify not in ("first", "while"):
            raise ValueError(f'verify={verify!r}: give "first" or "while"')
        resume = any(isinstance(t, Optimizer) for t in targets.values()) if rng is None else rng
        targets.pop(RNG, None)
        request = Request(
            view=self._view,
            manifest=self._manifest,
            targets=targets,
            given=self._given,
            choice=Choice(
                patterns,
                dict(rename or {}),
                frozenset(_several(allow)),
                code_wins=on_conflict == "code",
                resume=resume,
            ),
            source=dict(source or {}),
            agreed=_joined(self._agreed, trust),
            rng=resume,
        )
        planned = plan_request(request)
        with memory_for(targets, planned.plan) as given:
            planned = plan_request(request) if given else planned
            plan = planned.plan
            if self._manifest is None and any(f.severity == "error" for f in plan.findings):
                plan.findings = explained(request, planned)
            with self._unless_replaced():
                once, new = verify == "while", fills_only(plan, given)
                done = apply(plan, str(self.path), progress, while_reading=once, new=new)
        done = replace(done, findings=(*self._passed, *done.findings))
        return done if probe is False else self._probed(done, probe, targets)

    def _probed(self, done: Report, probe: Any, targets: Mapping[str, Any]) -> Report:
        from holdtrue.restore.probing import check_probe

        if self._manifest is None:
            return report(done.subject, done.findings, ("the probe: none was saved",))
        said = check_probe(self._manifest, self._fresh(), targets, probe)
        return report(done.subject, [*done.findings, *said.findings], said.not_checked)

    @put_off()
    def build(
        self,
        part: str = "model",
        *,
        trust: Iterable[type | str] = (),
        allow: str | Iterable[str] = (),
        mapped: bool = False,
    ) -> "torch.nn.Module":
        """A new module of the saved architecture with the saved state, on the CPU.

        With `mapped` the tensors are private maps of the file, verified first: memory is taken for
        what is written to, and the file never changes. Nobody may write into the file in place
        while the module lives: that would show, and cutting it short ends the process (SIGBUS).
        Removing the checkpoint, or saving over it, does no harm. Files of other formats are read.

        Only classes that are imported already and that `trust` names, by class or by package, are
        built; torch.nn's own need no word. Raises RestoreError where the checkpoint cannot tell how
        the module is built, or the classes are not trusted, not imported, or not the same any more.
        """
        from holdtrue.restore.apply import apply
        from holdtrue.restore.foreign_modules import build_foreign
        from holdtrue.restore.fresh import Fresh
        from holdtrue.restore.mapped import Maps
        from holdtrue.restore.plan import Choice
        from holdtrue.restore.rebuilding import build_part
        from holdtrue.restore.request import Request, plan_request

        if part not in self.parts:
            raise KeyError(f"{self.path} has no part {part!r}; it has {', '.join(self.parts)}")
        agreed = _joined(self._agreed, trust)
        if self._manifest is None:
            return build_foreign(part, foreign_parts(self._view)[part], agreed, str(self.path))
        fresh, record = Fresh(self._view.tensors, agreed), self._manifest.parts[part]
        maps = Maps() if mapped else None
        with self._unless_replaced():
            module = build_part(part, record, fresh, agreed, str(self.path), maps)
        request = Request(
            view=self._view,
            manifest=self._manifest,
            targets={part: module},
            given=self._given,
            choice=Choice(allow=frozenset(_several(allow))),
            source={},
            agreed=agreed,
            rng=False,
        )
        with self._unless_replaced():
            plan = plan_request(request).plan
            apply(plan, str(self.path), new=True, mapped=maps.addresses if maps else ())
        return module

    @contextmanager
    def _unless_replaced(self) -> Iterator[None]:
        try:
            yield
        except DamageError as error:
            untouched = all(f.code != "target-unusable" for f in error.report.findings)
            if untouched and self._was_replaced():
                raise fail(DamageError, str(self.path), _replaced(self.path)) from error
            raise

    def _was_replaced(self) -> bool:
        try:
            return self._manifest is not None and read_manifest(self.path) != self._manifest
        except HoldtrueError:
            return False

    def _fresh(self, wanted: Iterable[str] = (), *, detached: bool = False) -> Any:
        """Key → a new tensor, or a NumPy array where there is no torch. Those `wanted` are read at
        once; `detached` says that they are to be no parameters."""
        if find_spec("torch") is None:
            return lambda key: StoredTensor(self._view.tensors[key], key).numpy()
        from holdtrue.restore.fresh import Fresh
        from holdtrue.restore.prefilled import prefill

        keys, tensors = list(wanted), self._view.tensors
        if detached:
            tensors = {**tensors, **{key: _detached(tensors[key]) for key in keys}}
        fresh = Fresh(tensors, self._agreed, self._proven)
        prefill(fresh, keys)
        return fresh

    def _values(self, state: Any, part: str) -> Callable[[Any], Any]:
        """Node → value, for nodes within a part's `state`, whose tensors are read at once."""
        if find_spec("torch") is None:
            return lambda node: _plain_value(node, part, self._view, self._agreed)
        from holdtrue.restore.fresh import decode_value
        from holdtrue.restore.prefilled import keys_in

        fresh = self._fresh(keys_in(state))
        return lambda node: decode_value(node, fresh, path=part)[0]

    def _foreign_value(self, tree: Any, part: str) -> Any:
        names = {id(lazy): path for path, lazy in self._view.tensors.items()}
        if is_module(tree) and not has_packed(tree, part):
            # As torch's own state_dict(): detached. One tensor under two names stays one.
            found = state_dict(tree, part)
            made = {id(lazy): _detached(lazy) for lazy in found.values()}
            names |= {id(made[old]): path for old, path in names.items() if old in made}
            tree = OrderedDict((name, made[id(lazy)]) for name, lazy in found.items())
        where = f"{self.path}: {part}"
        if find_spec("torch") is None:

            def array(lazy: LazyTensor) -> Any:
                name = names.get(id(lazy), part)
                return StoredTensor(lazy, name, proven=self._proven).numpy()

            return map_tensors(tree, array, where)
        from holdtrue.restore.storages import Storages, torch_value

        return map_tensors(
            tree, Storages(where, self._agreed, names, self._proven), where, torch_value
        )


def open(path: str | os.PathLike[str], *, trust: Iterable[type | str] = ()) -> Checkpoint:
    """Open any checkpoint: holdtrue's own, a run (its latest), `run@best`, `run@latest`, `run@400`,
    .pt, .pth, .ckpt and .bin of torch, safetensors, Hugging Face shards, TorchScript, distributed
    checkpoints, exported programs, NumPy files, plain pickles.

    `run@whole` is the newest of which every byte verifies, for which it is read once more; newer
    ones that do not are logged, and `restore` reports them.

    The format is told by content. Nothing in the file is run or imported; tensors are read and
    verified when asked for. `trust` names classes whose objects may be built from holdtrue's own
    checkpoints. Raises OpenError or DamageError.
    """
    agreed = _joined(Trust(), trust)
    with reading(os.fspath(path)), put_off():
        place, passed = find(path)
        if place.name == NAME:
            place = place.parent
        if not is_ours(place):
            return Checkpoint(place, read_any(str(place)), agreed, None, os.fspath(path))
        manifest = read_manifest(place)
        view = to_view(place, manifest)
        return Checkpoint(place, view, agreed, manifest, os.fspath(path), passed)


def foreign_parts(view: View) -> dict[str, Any]:
    """The parts of a file of another format: the top of its tree, by name."""
    tree = view.tree
    named = isinstance(tree, dict) and bool(tree) and all(isinstance(key, str) for key in tree)
    if is_module(tree) or (named and all(isinstance(v, LazyTensor) for v in tree.values())):
        return {"model": tree}
    return dict(tree) if named else {"value": tree}


def _several(given: str | Iterable[str]) -> Iterable[str]:
    return (given,) if isinstance(given, str) else given


def _joined(agreed: Trust, more: Iterable[type | str]) -> Trust:
    new = trust(more)
    return Trust({**agreed.classes, **new.classes}, agreed.packages + new.packages)


def _plain_value(node: Any, part: str, view: View, agreed: Trust) -> Any:
    def array(key: str) -> Any:
        return StoredTensor(view.tensors[key], key).numpy()

    return decode(node, Decoding(tensor=array, agreed=agreed), path=part)


def _replaced(path: Path) -> Finding:
    return Finding(
        code="replaced-while-read",
        severity="error",
        where=str(path),
        what="another checkpoint stands here now",
        why="it was overwritten after this one was opened",
        fix="open it again",
    )


def _detached(lazy: LazyTensor) -> LazyTensor:
    if lazy.layout == "uninitialized":
        return lazy
    return replace(lazy, parameter=False, requires_grad=False)
