"""Lightning: a callback that keeps the whole training as a run, and resumes it."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from holdtrue.capture.loader import generators
from holdtrue.integrations import (
    package_missing,
    random_states,
    set_random_states,
    several_processes,
)

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.loops.loop import _Loop
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lightning":
        raise
    raise package_missing("lightning", "lightning") from None

from holdtrue.integrations.lightning_io import HoldtrueIO
from holdtrue.runs.keep import Keep
from holdtrue.runs.run import Run

__all__ = ["HoldtrueCallback", "HoldtrueIO"]

_log = logging.getLogger("holdtrue")


class HoldtrueCallback(Checkpoint):
    """Saves every `every_n_steps` optimizer steps and `every_n_epochs` epochs, behind the training,
    and resumes from the newest whole checkpoint when `fit` begins.

    A save that falls on the last batch of an epoch is made at the epoch's end, and one that falls
    before a validation in mid-epoch with the next step: there Lightning can be resumed exactly.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = 1,
        keep: Keep | None = None,
        busy: Literal["wait", "skip"] = "wait",
        on_error: Literal["raise", "warn"] = "warn",
        allow: Iterable[str] = (),
    ) -> None:
        for name, every in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if every is not None and every < 1:
                raise ValueError(f"{name}={every!r}: give a whole number from 1, or None")
        if every_n_steps is None and every_n_epochs is None:
            raise ValueError("nothing would be saved: give every_n_steps or every_n_epochs")
        self.path, self.keep, self.busy, self.allow = path, keep, busy, tuple(allow)
        self.on_error = on_error
        self.every_n_steps, self.every_n_epochs = every_n_steps, every_n_epochs
        self.run: Run | None = None
        self._training: dict[str, Any] = {}  # the part of this name
        self._last = 0  # the step of the last save, or resume
        self._random: dict[str, Any] | None = None  # to be set when the loop is about to begin

    @property
    def best_model_path(self) -> str:
        """For `ckpt_path="best"`, which `HoldtrueIO` reads; "" when there is none."""
        best = self._run().best() if self._run().keep.by else None
        return str(best.path) if best else ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.world_size > 1:
            raise several_processes(
                str(self.path),
                trainer.world_size,
                "let Lightning gather them, and HoldtrueIO write what it gathered",
                "trainer = Trainer(plugins=[HoldtrueIO()])",
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training.clear()
        self.run = Run(
            self.path,
            keep=self.keep,
            busy=self.busy,
            on_error=self.on_error,
            model=pl_module,
            training=self._training,
            **_numbered("optimizer", trainer.optimizers),
            **_numbered("scheduler", [c.scheduler for c in trainer.lr_scheduler_configs]),
        )
        self._last = self.run.resume(allow=self.allow)
        self._random = None
        if self._training:
            _restore(trainer, self._training)
            # Between here and the first batch Lightning makes loaders and iterators, which draw.
            self._random = random_states()
            _log.info("%s: resumed from step %d", self.path, self._last)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._random is None:
            return
        _restore_loop(trainer, self._training)
        set_random_states(self._random)
        self._random = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.every_n_steps
        if every is None or step // every <= self._last // every:
            return
        epoch_loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        if epoch_loop._num_ready_batches_reached():
            return  # at the epoch's end
        if fetcher is not None and epoch_loop._should_check_val_fx(fetcher):
            return  # with the next step: a resumed loop would leave this validation out
        self._save(trainer, epoch_end=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, steps, epochs = trainer.global_step, self.every_n_steps, self.every_n_epochs
        by_step = steps is not None and step // steps > self._last // steps
        by_epoch = epochs is not None and (trainer.current_epoch + 1) % epochs == 0
        if step > self._last and (by_step or by_epoch):
            self._save(trainer, epoch_end=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run().close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self.run is not None:  # wait for the save in progress; what ended the training says more
            self.run.__exit__(type(exception), exception, None)

    def _save(self, trainer: Trainer, *, epoch_end: bool) -> None:
        self._training.clear()
        self._training.update(_training(trainer, epoch_end))
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        saving = self._run().save(trainer.global_step, metrics=metrics)
        if not saving.skipped:
            self._last = trainer.global_step

    def _run(self) -> Run:
        return self.run if self.run is not None else Run(self.path, keep=self.keep)


def _training(trainer: Trainer, epoch_end: bool) -> dict[str, Any]:
    """What Lightning itself would write beside model, optimizers and schedulers: loops, callbacks,
    precision, data module, and what the hooks of these add; and what it would forget."""
    dumped = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        dumped.pop(name, None)  # these are parts of their own
    states = [{k: g.get_state() for k, g in own.items()} for own in _generators(trainer)]
    metrics = dict(trainer.callback_metrics)
    return {"lightning": dumped, "generators": states, "metrics": metrics, "epoch_end": epoch_end}


def _restore(trainer: Trainer, training: Mapping[str, Any]) -> None:
    """Hand Lightning what `_training` took, before it makes loaders."""
    connector = trainer._checkpoint_connector
    connector._loaded_checkpoint = dict(training["lightning"])
    try:
        connector.restore_datamodule()
        trainer.lightning_module.on_load_checkpoint(connector._loaded_checkpoint)
        connector.restore_callbacks()
        connector.restore_precision_plugin_state()
        connector.restore_loops()
    finally:
        connector._loaded_checkpoint = {}
    if training["epoch_end"]:
        # The epoch is over, so the next one begins: with max_steps Lightning takes it for one in
        # progress. By the base class: the fit loop's own setter would say so again.
        setter: Any = _Loop.restarting
        setter.fset(trainer.fit_loop, False)


def _restore_loop(trainer: Trainer, training: Mapping[str, Any]) -> None:
    """The same, for what Lightning resets or makes anew until the loop begins."""
    trainer._logger_connector._callback_metrics.update(training["metrics"])
    if training["epoch_end"]:
        for own, states in zip(_generators(trainer), training["generators"], strict=False):
            for name in own.keys() & states.keys():
                own[name].set_state(states[name])
        # What follows the last hook of an epoch, and counts it as one in progress.
        done = trainer.fit_loop.epoch_progress.current
        done.completed -= 1
        trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        done.completed += 1
        # Let it make its iterator where it would have, after the epoch's hooks.
        trainer.fit_loop._resuming_from_checkpoint = False


def _generators(trainer: Trainer) -> list[dict[str, torch.Generator]]:
    """Those that the training's loaders draw from, beside the global one."""
    combined = trainer.fit_loop._combined_loader
    loaders = combined.flattened if combined is not None else []
    return [generators(loader) if isinstance(loader, DataLoader) else {} for loader in loaders]


def _numbered(name: str, parts: Iterable[Any]) -> dict[str, Any]:
    """optimizer, optimizer_2, …"""
    return {f"{name}_{n}" if n > 1 else name: part for n, part in enumerate(parts, 1)}
