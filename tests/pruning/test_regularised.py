"""Units that shrink before they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from support import Digits, digits, make_trainer, trained_net
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_unitrole import UnitPruning, UnitRoleMonitor
from lightning_unitrole.errors import SettingError
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.masking import removed_entries, shrink
from lightning_unitrole.pruning.removal import plan_removal
from lightning_unitrole.pruning.schedules import Schedule

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    # A run that only reads checkpoints need not write any.
    "ignore:Be aware that when using `ckpt_path`",
)

SHRINKING: dict[str, Any] = {"schedule": "regularised", "start_epoch": 1, "end_epoch": 3}


def pruning(**settings: Any) -> UnitPruning:
    monitor = UnitRoleMonitor(images_per_class=5, ablation_points=4, backend="torch", every_n_epochs=99)
    return UnitPruning(**{"amount": 0.4, "choose_by": "group_norm", "monitor": monitor, **SHRINKING, **settings})


def loaders() -> tuple[Any, Any]:
    return DataLoader(digits(300), batch_size=32), DataLoader(digits(150, start=300), batch_size=32)


def run(model: Digits, callback: UnitPruning, *more: Any, ckpt_path: Any = None, **settings: Any) -> pl.Trainer:
    saves = any(isinstance(one, ModelCheckpoint) for one in more)
    trainer = make_trainer(callback, *more, **{"max_epochs": 4, "enable_checkpointing": saves, **settings})
    trainer.fit(model, *loaders(), ckpt_path=ckpt_path)
    return trainer


def seeded() -> Digits:
    torch.manual_seed(0)
    return Digits()


class Sizes(pl.Callback):
    """The norm of what is going to be removed, after each batch."""

    def __init__(self, callback: UnitPruning) -> None:
        self.callback, self.norms = callback, []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.callback._shrinking is not None:
            entries = removed_entries(pl_module, self.callback._shrinking)
            parts = [parameter.detach().index_select(dim, indices) for parameter, dim, indices in entries]
            self.norms.append((trainer.current_epoch, float(sum(part.norm() for part in parts))))


def test_weights_shrink_evenly_to_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    inputs = torch.rand(2, 1, 8, 8)
    graph = channel_graph(net, net, inputs, batch=2)
    (name,) = (group.name for group in graph.groups if group.reason is None)
    removal = plan_removal(graph, {name: [1, 3]})
    before = {key: value.detach().clone() for key, value in net.named_parameters()}
    for left in (3, 2, 1):
        shrink(net, removal, left)
    for key, dim in (("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1)):
        now, then = dict(net.named_parameters())[key].detach(), before[key]
        for unit in range(4):
            share = 0.25 if unit in (1, 3) else 1.0
            torch.testing.assert_close(now.select(dim, unit), share * then.select(dim, unit))
    shrink(net, removal, 0)
    assert not net[0].weight[[1, 3]].any()
    assert not net[3].weight[:, [1, 3]].any()


@pytest.mark.parametrize("mode", ["remove", pytest.param("mask", marks=pytest.mark.slow)])
def test_what_goes_is_zero_by_then_and_taking_it_changes_nothing(mode: str) -> None:
    model, callback = seeded(), pruning(mode=mode)
    model.net = trained_net()
    sizes = Sizes(callback)
    run(model, callback, sizes)
    # The pruning comes before the other callback is asked, batch by batch.
    assert [epoch for epoch, _ in sizes.norms] == [1] * 10 + [2] * 10
    norms = [norm for _, norm in sizes.norms]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] == 0 < norms[9] < 0.7 * norms[0]
    assert callback.report is not None
    (step,) = callback.report.steps
    assert step.epoch == 3
    assert callback.report.after.macs <= 0.6 * callback.report.before.macs
    assert step.accuracy_after == step.accuracy_before == step.predicted_accuracy
    assert step.loss_after == pytest.approx(step.predicted_loss, abs=1e-6)


@pytest.mark.parametrize("crash_in", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(crash_in: int, tmp_path: Path) -> None:
    class Crash(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.current_epoch == crash_in + 1:
                raise RuntimeError("power cut")

    class SameNumbers(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            torch.manual_seed(trainer.global_step)

    whole, resumed = seeded(), Digits()
    expected, found = pruning(), pruning()
    run(whole, expected, SameNumbers())
    with pytest.raises(RuntimeError, match="power cut"):
        run(seeded(), pruning(), SameNumbers(), ModelCheckpoint(tmp_path, save_last=True), Crash())
    run(resumed, found, SameNumbers(), ckpt_path=tmp_path / "last.ckpt")
    assert expected.report is not None
    assert found.report is not None
    assert found.report.steps == expected.report.steps
    for name, values in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], values), name


def test_a_fit_that_ends_before_the_cut_leaves_the_network_whole() -> None:
    model, callback = seeded(), pruning(end_epoch=5)
    run(model, callback)
    assert callback.report is not None
    assert not callback.report.steps
    assert callback.report.after.macs == callback.report.before.macs


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(digits(64))


def test_an_unknown_number_of_batches_is_refused_before_training() -> None:
    model, callback = seeded(), pruning()
    trainer = make_trainer(callback, max_epochs=4, limit_train_batches=None)
    with pytest.raises(SettingError, match=r"needs to know how many batches an epoch has.*limit_train_batches="):
        trainer.fit(model, DataLoader(Endless(), batch_size=16), loaders()[1])


def test_the_end_comes_after_the_start() -> None:
    with pytest.raises(SettingError, match=r"end_epoch=2; expected an integer of at least start_epoch=2 \+ 1"):
        Schedule("regularised", start=2, end=2)
    schedule = Schedule("regularised", start=2, end=4)
    assert [schedule.shrinks(epoch) for epoch in range(6)] == [False, False, True, True, False, False]
    assert [schedule.latest(epoch) for epoch in (3, 4, 9)] == [None, 4, 4]
