"""Lightning's loop stopped in every place where it is saved; and its checkpoints without pickle."""

import pytest
import torch

pytest.importorskip("lightning")

from killing import parts_that_differ  # noqa: E402
from lightning.pytorch import LightningModule, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402

import holdtrue  # noqa: E402
from holdtrue.integrations.lightning import HoldtrueCallback, HoldtrueIO  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of small data and few workers


class Stopped(Exception):
    pass


class Net(LightningModule):
    def __init__(self, stop_before=None, plateau=False):
        super().__init__()
        self.stop_before, self.plateau = stop_before, plateau
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.seen = []

    def training_step(self, batch, index):
        if self.trainer.global_step == self.stop_before:
            raise Stopped
        self.seen.append(batch[0].sum().item())
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("val_loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        if self.plateau:
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
            settings = {"scheduler": plateau, "monitor": "val_loss", "frequency": 2}
            return {"optimizer": optimizer, "lr_scheduler": settings}
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = {"step": self.trainer.global_step}

    def on_load_checkpoint(self, checkpoint):
        self.loaded = checkpoint["mine"]


def fit(
    place,
    loader_class,
    stop_before=None,
    callback=None,
    io=None,
    ckpt=None,
    plateau=False,
    **settings,
):
    seed_everything(0, verbose=False)
    data = TensorDataset(torch.arange(80.0).reshape(20, 4))
    callbacks = [EarlyStopping("val_loss", patience=100)]
    callbacks += [callback] if callback else []
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=place, callbacks=callbacks, plugins=[io] if io else None,
        **{"max_epochs": 3, **settings},
    )  # fmt: skip
    model = Net(stop_before, plateau)
    loader = loader_class(data, batch_size=4, shuffle=True)
    try:
        trainer.fit(model, loader, DataLoader(data, batch_size=10), ckpt_path=ckpt)
    except Stopped:
        assert stop_before is not None
    return model, trainer


PLACES = [
    # settings, how often, stopped before these steps (5 batches an epoch)
    ({}, {"every_n_steps": 1}, (1, 4, 5, 6, 12)),
    ({"max_epochs": -1, "max_steps": 13}, {"every_n_steps": 1}, (3, 5, 10)),
    ({"accumulate_grad_batches": 2}, {"every_n_steps": 1}, (1, 3, 4)),
    ({"plateau": True, "max_epochs": 5}, {"every_n_steps": 5}, (11, 16, 22)),
    ({"val_check_interval": 2}, {"every_n_steps": 1}, (2, 3, 4, 5, 7)),
]


@pytest.mark.parametrize(("settings", "every", "stops"), PLACES, ids=lambda v: "")
def test_a_resumed_loop_ends_with_the_same_bits(tmp_path, settings, every, stops, figure):
    def keeping(name):
        return HoldtrueCallback(tmp_path / name, **every)

    fit(tmp_path, StatefulDataLoader, callback=keeping("whole"), **settings)
    for stop in stops:
        name = f"cut{stop}"
        fit(tmp_path, StatefulDataLoader, stop, keeping(name), **settings)
        fit(tmp_path, StatefulDataLoader, callback=keeping(name), **settings)
        differing = parts_that_differ(tmp_path / "whole", tmp_path / name)
        if "max_steps" in settings and stop == 10:
            # Lightning looks at two batches of validation before an epoch, and counts from 0 after
            # that. Here it has not validated again, so its counter is another; nothing reads it.
            assert _without_validation(tmp_path / "whole") == _without_validation(tmp_path / name)
            differing -= {"training"}
        assert differing == set(), stop
        figure("Lightning loops stopped and resumed")


def _without_validation(run):
    loops = holdtrue.open(run)["training"]["lightning"]["loops"]["fit_loop"]
    return repr({k: v for k, v in loops.items() if "val_loop" not in k})


def test_a_plain_loader_is_resumed_at_the_end_of_an_epoch(tmp_path):
    fit(tmp_path, DataLoader, callback=HoldtrueCallback(tmp_path / "whole"))
    fit(tmp_path, DataLoader, 8, HoldtrueCallback(tmp_path / "cut"))
    assert holdtrue.open(tmp_path / "cut").step == 5
    model, _ = fit(tmp_path, DataLoader, callback=HoldtrueCallback(tmp_path / "cut"))
    assert len(model.seen) == 10
    assert model.loaded == {"step": 5}
    assert parts_that_differ(tmp_path / "whole", tmp_path / "cut") == set()


def test_the_best_checkpoint_can_be_validated(tmp_path):
    keep = holdtrue.Keep(best=1, by="val_loss")
    callback = HoldtrueCallback(tmp_path / "run", keep=keep)
    model, trainer = fit(tmp_path, DataLoader, callback=callback, io=HoldtrueIO())
    data = DataLoader(TensorDataset(torch.arange(80.0).reshape(20, 4)), batch_size=10)
    best = holdtrue.open(f"{tmp_path / 'run'}@best")
    found = trainer.validate(model, data, ckpt_path="best", verbose=False)
    assert found == [{"val_loss": pytest.approx(best.metrics["val_loss"])}]


def test_what_lightning_saves_is_a_checkpoint_and_resumes_as_its_own(tmp_path):
    ends = {}
    for name, io in (("torch", None), ("ours", HoldtrueIO())):
        place = tmp_path / name
        keeping = ModelCheckpoint(place, save_top_k=2, monitor="val_loss", filename="{step}")
        fit(place, StatefulDataLoader, callback=keeping, io=io, max_epochs=2)
        assert len(list(place.glob("step=*"))) == 2
        path = keeping.best_model_path
        model, _ = fit(place, StatefulDataLoader, io=io, ckpt=path)
        ends[name] = model.state_dict(), path
    ours = holdtrue.open(ends["ours"][1])
    assert ours.format == "holdtrue"
    assert holdtrue.verify(ours.path).ok
    assert all(torch.equal(v, ends["ours"][0][k]) for k, v in ends["torch"][0].items())
    # A checkpoint that torch.save wrote is read as data, and resumes the same.
    read = HoldtrueIO().load_checkpoint(ends["torch"][1])
    assert read["state_dict"].keys() == ends["torch"][0].keys()
    model, _ = fit(tmp_path, StatefulDataLoader, io=HoldtrueIO(), ckpt=ends["torch"][1])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in ends["torch"][0].items())


def test_a_callback_that_would_save_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing would be saved"):
        HoldtrueCallback(tmp_path, every_n_epochs=None)


def test_several_processes_are_refused(tmp_path):
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        HoldtrueCallback(tmp_path).setup(trainer, Net(), "fit")
    assert [f.code for f in caught.value.report.findings] == ["several-processes"]
