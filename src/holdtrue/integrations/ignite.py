"""Ignite: a save handler for its `Checkpoint` that keeps the training as a run."""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from holdtrue.integrations import (
    package_missing,
    random_states,
    set_random_states,
    several_processes,
)

try:
    import ignite.distributed as idist
    from ignite.engine import Engine, Events
    from ignite.handlers.checkpoint import BaseSaveHandler
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "ignite":
        raise
    raise package_missing("pytorch-ignite", "ignite") from None

from holdtrue.errors import SaveError, fail
from holdtrue.findings import Finding
from holdtrue.formats.step_names import step_name
from holdtrue.runs.handle import Saving
from holdtrue.runs.keep import Keep
from holdtrue.runs.run import Run
from holdtrue.storage.commit import remove


class HoldtrueSaver(BaseSaveHandler):  # type: ignore[misc, unused-ignore]
    """Keeps the trainer and the parts as a run; steps are the trainer's iterations.

    `Checkpoint(saver.parts, saver, n_saved=3)` decides when, and how many; what it drops is removed
    once the next one is durable. `keep` is a rule instead of that, with `n_saved=None`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        trainer: Engine,
        *,
        keep: Keep | None = None,
        busy: Literal["wait", "skip"] = "wait",
        on_error: Literal["raise", "warn"] = "warn",
        **parts: Any,
    ) -> None:
        if idist.get_world_size() > 1:
            raise several_processes(
                str(path), idist.get_world_size(), "train in one process, or save by DiskSaver"
            )
        self.trainer = trainer
        self.parts: dict[str, Any] = {"trainer": trainer, **parts}
        self.run = Run(path, keep=keep, busy=busy, on_error=on_error, **self.parts)
        self._last: Saving | None = None
        self._steps: dict[str, int] = {}  # Ignite's file name → step
        self._dropped: list[str] = []  # since the last save
        self._doomed: list[str] = []  # before it: to be removed when it is durable
        self._random: dict[str, Any] | None = None  # to be set when the loop is about to begin
        trainer.add_event_handler(Events.EPOCH_STARTED, self._before_loader)
        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._before_batch)
        trainer.add_event_handler(Events.COMPLETED, self.close)

    def __call__(
        self,
        checkpoint: Mapping[str, Any],
        filename: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """`checkpoint` are state dicts; the live parts are kept instead, which say more."""
        several = not checkpoint.keys().isdisjoint(self.parts)  # a single object comes without name
        unknown = sorted(checkpoint.keys() - self.parts.keys()) if several else []
        if unknown:
            raise fail(SaveError, str(self.run.path), _not_given(unknown))
        step = self.trainer.state.iteration
        given = metadata or {}
        name, score = given.get("score_name"), given.get("priority")
        saving = self.run.save(step, {name: float(score)} if name and score is not None else None)
        if saving.skipped or saving.error is not None:
            return
        self._steps[filename] = step
        self._remove_doomed()  # the save before this one has ended
        self._last = saving

    def remove(self, filename: str) -> None:
        """Later: Ignite asks for this before it saves the next one."""
        self._dropped.append(filename)

    def resume(self, *, allow: Iterable[str] = ()) -> int:
        """Restore everything from the newest whole checkpoint; then `trainer.run(loader)` goes on.

        Returns the iteration, 0 on a fresh run.
        """
        step = self.run.resume(allow=allow)
        self._random = random_states() if self.run.report is not None else None
        return step

    def close(self) -> None:
        """Wait until the last save is durable, and remove what was dropped."""
        self.run.close()
        self._remove_doomed()
        self._remove_doomed()  # and what was dropped since

    def _remove_doomed(self) -> None:
        """What was dropped before the last save, where that one is durable; else it is all there
        is, and waits for one that is."""
        if self._last is not None and self._last.error is not None:
            self._doomed, self._dropped = self._doomed + self._dropped, []
            return
        for filename in self._doomed:
            step = self._steps.pop(filename, None)
            if step is not None:
                remove(self.run.path / step_name(step))
        self._doomed, self._dropped = self._dropped, []

    def _before_loader(self) -> None:
        if self._random is not None and not _keeps_its_place(self.trainer):
            set_random_states(self._random)
            self._random = None

    def _before_batch(self) -> None:
        if self._random is not None:  # the iterator that was made meanwhile has drawn
            set_random_states(self._random)
            self._random = None


def _keeps_its_place(trainer: Engine) -> bool:
    return hasattr(trainer.state.dataloader, "load_state_dict")


def _not_given(names: list[str]) -> Finding:
    return Finding(
        code="part-not-given",
        severity="error",
        where=names[0],
        places=tuple(names),
        what="Checkpoint is to save objects that the saver does not know",
        why="the saver keeps live objects, and gets only state dicts from Checkpoint; a resume "
        "could not put these back",
        fix="give them to HoldtrueSaver by keyword, and its parts to Checkpoint",
        command="handler = Checkpoint(saver.parts, saver, n_saved=3)",
    )
