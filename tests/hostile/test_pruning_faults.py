"""A fault while units are pruned becomes a warning: training goes on, as without pruning or validly pruned."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from support import adafactor, hooks_of, make_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from unchanged import QUIETLY, Run, Tiny, alike, monitor

from lightning_unitrole.callbacks import UnitPruning
from lightning_unitrole.errors import SettingError, TraceError
from lightning_unitrole.network.units import find_unit_layers
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.history import removals_of

pytestmark = QUIETLY
FULL = 4

BEFORE = [
    "lightning_unitrole.callbacks.pruner.choose",
    "lightning_unitrole.callbacks.measuring.find_candidates",
    "lightning_unitrole.callbacks.measuring.prunable_groups",
    "lightning_unitrole.callbacks.measuring.gather_evidence",
    "lightning_unitrole.callbacks.pruner.plan_removal",
    "lightning_unitrole.callbacks.pruner.units_left",
    "lightning_unitrole.pruning.network.NetworkState.accuracy",
    "lightning_unitrole.pruning.network.NetworkState.predict",
    "lightning_unitrole.pruning.network.NetworkState.counts",
    "lightning_unitrole.pruning.network.NetworkState.gone",
    "lightning_unitrole.pruning.evidence.rank",
    "lightning_unitrole.analysis.observer.Observer.measure",
    "lightning_unitrole.data.probe.Probe.batches",
    "lightning_unitrole.network.runner.Runner.undisturbed",
    "lightning_unitrole.callbacks.trainer.TrainerRunner.transfer",
    "lightning_unitrole.callbacks.trainer.TrainerRunner.forward",
]
"""What is called before a removal, in both modes."""

REMOVING = [
    "lightning_unitrole.callbacks.pruner.check_optimizers",
    "lightning_unitrole.callbacks.pruner.remove_checked",
    "lightning_unitrole.callbacks.pruner.record_removals",
    "lightning_unitrole.callbacks.pruner.carry_over",
    "lightning_unitrole.pruning.equivalence.remove",
    "lightning_unitrole.pruning.equivalence.UnitMask",
    "lightning_unitrole.pruning.equivalence._masked",
    "lightning_unitrole.pruning.optimizers._sliced",
    "lightning_unitrole.pruning.removal._fitting_attributes",
    "lightning_unitrole.pruning.removal._replace",
    "lightning_unitrole.pruning.history.RemovalHistory.__init__",
]
"""What is called while units are removed."""

MASKING = ["lightning_unitrole.callbacks.pruner.UnitMask", "lightning_unitrole.pruning.masking.UnitMask.take"]
"""What is called while units are masked."""

AFTER = [
    "lightning_unitrole.callbacks.measuring.NetworkState",
    "lightning_unitrole.callbacks.pruner.log_pruning",
    "lightning_unitrole.callbacks.pruner.pruning_scalars",
    "lightning_unitrole.callbacks.pruner.PruningStep",
    "lightning_unitrole.callbacks.pruner._recompile",
    "lightning_unitrole.pruning.network.measure_latency",
    "lightning_unitrole.pruning.network.channel_graph",
    "lightning_unitrole.pruning.coupling._positions",
    "lightning_unitrole.pruning.finder.Finder.groups",
    "torch_pruning.DependencyGraph.build_dependency",
    "lightning_unitrole.analysis.session.find_unit_layers",
]
"""What is called after a removal, when it cannot be taken back."""


class Broken(pl.Callback):
    """Breaks something at the start of an epoch, before units are pruned, and mends it at the start of another."""

    def __init__(self, target: str, monkeypatch: pytest.MonkeyPatch, *, mended: int = 99) -> None:
        self.target, self.monkeypatch, self.mended = target, monkeypatch, mended
        self.calls = 0

    def fail(self, *args: Any, **settings: Any) -> Any:
        self.calls += 1
        raise RuntimeError("broken on purpose")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.monkeypatch.setattr(self.target, self.fail)
        if trainer.current_epoch == self.mended:
            self.monkeypatch.undo()


def pruning(**settings: Any) -> UnitPruning:
    return UnitPruning(**{"amount": 0.3, "choose_by": "mean_activation", "monitor": monitor(), **settings})


def train(*callbacks: Any, module: type[Tiny] = Tiny, **settings: Any) -> pl.LightningModule:
    torch.manual_seed(0)
    run = Run(module())
    make_trainer(*callbacks, **{"max_epochs": 3, **settings}).fit(run.module, run.train, run.val)
    assert hooks_of(run.module) == 0
    assert all(one.requires_grad and bool(one.isfinite().all()) for one in run.module.parameters())
    return run.module


def everything(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("target", "mode"),
    [*((one, "remove") for one in BEFORE + REMOVING), *((one, "mask") for one in [*BEFORE[:2], *MASKING])],
)
def test_what_fails_before_a_removal_leaves_all_as_it_was(
    target: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, callback = Broken(target, monkeypatch), pruning(mode=mode)
    with pytest.warns(UserWarning, match=r"(?s)and training goes on\. .*broken on purpose"):
        found = train(broken, callback)
    monkeypatch.undo()
    assert broken.calls
    assert callback.report is not None
    assert callback.report.steps == ()
    assert removals_of(found) == []
    assert alike(everything(found), everything(train()))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("target", [BEFORE[0], BEFORE[4], REMOVING[3]])
def test_it_is_tried_again_at_the_next_epoch(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = pruning()
    with pytest.warns(UserWarning, match="and training goes on"):
        train(Broken(target, monkeypatch, mended=2), callback)
    assert callback.report is not None
    assert [step.epoch for step in callback.report.steps] == [2]
    assert callback.report.after.macs <= 0.7 * callback.report.before.macs


@pytest.mark.sampled(3)
@pytest.mark.parametrize("target", AFTER)
def test_what_fails_after_a_removal_leaves_the_smaller_network(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    broken, callback = Broken(target, monkeypatch), pruning()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*and training goes on")
        found = train(broken, callback, logger=CSVLogger(tmp_path))
    monkeypatch.undo()
    assert broken.calls or target.endswith("_recompile")  # called only where something was compiled
    assert len(removals_of(found)) == 1
    assert found.first.out_channels < FULL or found.second.out_channels < FULL
    assert callback.report is not None
    assert callback.report.after.parameters <= callback.report.before.parameters
    assert found(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_a_logger_that_fails_does_not_keep_others_from_logging(tmp_path: Any) -> None:
    class Faulty(CSVLogger):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if any("pruning" in key for key in metrics):
                raise RuntimeError("disk full")

    good = CSVLogger(tmp_path / "good")
    with pytest.warns(
        UserWarning, match="could not be logged by Faulty, and training goes on. RuntimeError: disk full"
    ):
        train(pruning(), logger=[Faulty(tmp_path / "bad"), good])
    assert "unitrole/pruning/macs" in (tmp_path / "good").rglob("metrics.csv").__next__().read_text()


def test_torch_prunings_own_hooks_do_not_stay_after_a_fault() -> None:
    module, images = Tiny(), torch.rand(2, 1, 8, 8)

    def fails(inputs: Tensor) -> Tensor:
        module(inputs)
        raise RuntimeError("broken on purpose")

    with pytest.raises((TraceError, RuntimeError), match="broken on purpose"):
        channel_graph(fails, module, images, batch=2)
    calls = []

    def fails_later(inputs: Tensor) -> Tensor:
        calls.append(1)
        return fails(inputs) if len(calls) > 1 else module(inputs)

    with pytest.raises(TraceError, match="broken on purpose"):
        channel_graph(fails_later, module, images, batch=2)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        find_unit_layers(fails, module, images)
    assert hooks_of(module) == 0
    assert all(one.requires_grad for one in module.parameters())


class Fixed(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.norm(self.first(images))))).reshape(-1, 256))


class Adafactor(Tiny):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(self.parameters())


class LBFGS(Tiny):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), max_iter=1)


class NeverTrains(pl.Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        raise AssertionError("something was trained")


@pytest.mark.parametrize(
    ("module", "settings", "said"),
    [
        pytest.param(
            Tiny,
            {"amount": 0.99},
            r"amount=0.99 of the network's macs cannot be removed: .* allow 0\.\d+ with",
            id="amount",
        ),
        pytest.param(
            Tiny,
            {"amount": 0.9, "skip_layers": ["second"]},
            r"allow 0\.\d+ .*What cannot be pruned: 'second' \(left out by layers or skip_layers\); 'head' \(its",
            id="amount with skipped layers",
        ),
        pytest.param(
            Tiny,
            {"round_to": 8, "amount": 0.2, "of": "layer"},
            r"No unit can be pruned.* round_to=8 leave",
            id="rounding",
        ),
        pytest.param(
            Tiny,
            {"min_units": 4, "amount": None, "max_accuracy_drop": 0.1},
            "No unit can be pruned: min_units=4",
            id="limit",
        ),
        pytest.param(
            Fixed,
            {"layers": ["second"]},
            "Layer 'second' cannot be pruned: tried out, the network without one of its units fails with RuntimeError:",
            id="shapes",
        ),
        pytest.param(
            Adafactor,
            {},
            r"Adafactor keeps '(row|col)_var' of shape .* Use mode='mask', or an optimizer such",
            id="Adafactor",
            marks=adafactor,
        ),
        pytest.param(LBFGS, {}, "LBFGS keeps one memory for all parameters", id="LBFGS"),
        pytest.param(
            Adafactor,
            {"mode": "mask", "remove_at_end": True},
            "Adafactor keeps",
            id="Adafactor at the end",
            marks=adafactor,
        ),
    ],
)
def test_what_cannot_work_fails_before_anything_is_trained(
    module: type[Tiny], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingError, match=said):
        train(pruning(start_epoch=50, **settings), NeverTrains(), module=module)


def test_a_layer_without_whose_units_the_network_fails_is_left_alone() -> None:
    callback = pruning()
    with pytest.warns(UserWarning, match=r"UnitPruning leaves one layer as it is\. 'second': tried out, the network"):
        module = train(callback, module=Fixed)
    report = callback.report
    assert report is not None
    assert report.skipped["second"].startswith("tried out")
    assert report.after.widths["second"] == report.before.widths["second"] == module.second.out_channels
    assert report.after.widths["first"] < report.before.widths["first"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("module", [Fixed, pytest.param(Adafactor, marks=adafactor), LBFGS])
def test_a_mask_suits_them_all(module: type[Tiny]) -> None:
    callback = pruning(mode="mask")
    train(callback, module=module)
    assert callback.report is not None
    assert len(callback.report.steps) == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.NAdam])
@pytest.mark.parametrize("module", [Tiny])
def test_trying_out_leaves_no_trace(optimizer: Callable[..., Any], module: type[Tiny]) -> None:
    class Optimized(module):  # type: ignore[misc, valid-type]
        def configure_optimizers(self) -> Any:
            return optimizer(self.parameters(), lr=0.01)

    found, expected = train(pruning(start_epoch=50), module=Optimized), train(module=Optimized)
    assert alike(everything(found), everything(expected))


@pytest.mark.parametrize(("mode", "graphs"), [("mask", 1), ("remove", 3)])
def test_the_network_is_followed_once_for_each_of_its_shapes(
    mode: str, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"graph": 0, "layers": 0}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **settings: Any) -> Any:
            counts[name] += 1
            return function(*args, **settings)

        return count

    monkeypatch.setattr("lightning_unitrole.pruning.network.channel_graph", counting("graph", channel_graph))
    monkeypatch.setattr("lightning_unitrole.analysis.session.find_unit_layers", counting("layers", find_unit_layers))
    callback = pruning(mode=mode, amount=0.5, schedule="linear", start_epoch=1, end_epoch=2)
    train(callback, max_epochs=4)
    assert callback.report is not None
    assert [step.num_units > 0 for step in callback.report.steps] == [True, True]
    assert counts == {"graph": graphs, "layers": graphs}


@pytest.mark.filterwarnings("ignore:.*ckpt_path")
@pytest.mark.filterwarnings("ignore:Be aware that when using")
def test_resuming_with_another_amount_goes_on_from_the_original_sizes(tmp_path: Any) -> None:
    def size(module: nn.Module) -> int:
        graph = channel_graph(module, module, torch.rand(2, 1, 8, 8), batch=2)
        return sum(
            graph.positions[name] * tensor.numel()
            for name, tensor in module.named_parameters()
            if name in graph.positions
        )

    class Wide(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.second, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    torch.manual_seed(0)
    run = Run(Wide())
    original = size(run.module)
    trainer = make_trainer(pruning(amount=0.3), max_epochs=2)
    trainer.fit(run.module, run.train, run.val)
    first = size(run.module)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    again, callback = Wide(), pruning(amount=0.35)
    make_trainer(callback, max_epochs=4).fit(again, run.train, run.val, ckpt_path=tmp_path / "one.ckpt")
    assert first <= 0.7 * original
    assert 0.5 * original < size(again) <= 0.65 * original


@pytest.mark.parametrize("target", [*BEFORE, *REMOVING, *MASKING, *AFTER])
def test_the_place_to_break_is_there(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, None)


def test_the_figures_in_the_documentation_are_these() -> None:
    told = (Path(__file__).parents[2] / "docs" / "promises.md").read_text(encoding="utf-8")
    assert f"{len(BEFORE) + len(REMOVING)} places, and {len(BEFORE[:2]) + len(MASKING)} in masks" in told
    assert f"the smaller network is trained on | {len(AFTER)} places" in told
