"""UnitPruning in a real Trainer, on real digits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from support import Digits, adafactor, digits, fit_in_the_other_lightning, hooks_of, loaders, make_trainer, trained_net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unitrole.callbacks import UnitPruning, UnitRoleMonitor
from lightning_unitrole.errors import BackendError, DataError, SettingError
from lightning_unitrole.pruning.history import load_pruned, removals_of

SCRIPT = Path(__file__).with_name("distributed_pruning.py")
pytestmark = [
    # Lightning's advice on the number of workers and the logging interval is not what is tested here.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # torch's own deprecations, raised by Lightning.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Networks that were trained for an epoch or two are rarely ranked well.
    pytest.mark.filterwarnings("ignore:The order by"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # A run that only reads checkpoints need not write any.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]
TWICE: dict[str, Any] = {"schedule": "linear", "start_epoch": 1, "end_epoch": 3, "every_n_epochs": 2}


def monitor(**settings: Any) -> UnitRoleMonitor:
    """A monitor that costs little, with data that do not depend on the trainer's loaders."""
    quick: dict[str, Any] = {"images_per_class": 5, "ablation_points": 4, "backend": "torch"}
    return UnitRoleMonitor(**{**quick, "every_n_epochs": 99, **settings})


def pruning(**settings: Any) -> UnitPruning:
    return UnitPruning(**{"amount": 0.4, "choose_by": "taylor", "monitor": monitor(), **settings})


def fit(model: pl.LightningModule, *callbacks: Any, ckpt_path: Any = None, **settings: Any) -> pl.Trainer:
    trainer = make_trainer(*callbacks, enable_checkpointing=saves(callbacks), **settings)
    trainer.fit(model, *loaders(), ckpt_path=ckpt_path)
    return trainer


def saves(callbacks: Any) -> bool:
    return any(isinstance(callback, ModelCheckpoint) for callback in callbacks)


def seeded() -> Digits:
    torch.manual_seed(0)
    return Digits()


def trained() -> Digits:
    """Far better than chance, whatever the processor."""
    model = seeded()
    model.net = trained_net()
    return model


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class SameNumbersEachStep(pl.Callback):
    """Dropout draws the same numbers in a step, whether or not the run was resumed before it."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)


class Crash(pl.Callback):
    """Stops training in the middle of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.current_epoch == self.epoch and trainer.is_last_batch is False and trainer.global_step % 10 == 5:
            raise RuntimeError("power cut")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("choose_by", "mode"),
    [
        ("evidence", "remove"),
        ("roles", "mask"),
        ("group_taylor", "remove"),
        ("group_norm", "mask"),
        *(
            pytest.param(choose_by, mode, marks=pytest.mark.slow)
            for choose_by, mode in (
                ("evidence", "mask"),
                ("roles", "remove"),
                ("feature_entropy", "remove"),
                ("feature_entropy", "mask"),
                ("filter_norm", "remove"),
                ("filter_norm", "mask"),
            )
        ),
    ],
)
def test_the_amount_is_reached(mode: str, choose_by: str) -> None:
    model, callback = trained(), pruning(mode=mode, choose_by=choose_by, monitor=monitor(images_per_class=13))
    fit(model, callback, max_epochs=2)
    report = callback.report
    assert report is not None
    assert report.after.macs <= 0.6 * report.before.macs
    assert sum(report.widths.values()) == report.after.units < report.before.units
    assert [step.epoch for step in report.steps] == [1]
    assert sum(map(len, report.steps[0].units.values())) == report.before.units - report.after.units
    if mode == "remove":
        assert num_parameters(model) == report.after.parameters
    else:
        assert num_parameters(model) == report.before.parameters
    assert hooks_of(model) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"choose_by": "evidence"}, id="evidence"),
        pytest.param({"choose_by": "roles"}, id="roles"),
        pytest.param({"choose_by": "taylor", "max_accuracy_drop": 0.1}, id="limit"),
    ],
)
def test_pruning_is_put_off_while_the_network_knows_nothing(settings: dict[str, Any]) -> None:
    model, callback = seeded(), pruning(start_epoch=0, **settings)
    with pytest.warns(UserWarning, match=r"Nothing was pruned at the start of epoch 0: .* may be chance"):
        fit(model, callback, max_epochs=1)
    assert callback.report is not None
    assert callback.report.steps == ()
    assert num_parameters(model) == num_parameters(Digits())


def test_a_limit_alone_prunes_what_the_curves_allow() -> None:
    parameters = []
    for drop in (0.0, 0.2):
        model = trained()
        watching = monitor(images_per_class=13)
        fit(model, UnitPruning(max_accuracy_drop=drop, start_epoch=0, monitor=watching), max_epochs=1)
        parameters.append(num_parameters(model))
    assert num_parameters(Digits()) >= parameters[0] > parameters[1]


def test_masked_units_stay_at_zero_and_can_be_removed_at_the_end() -> None:
    masked = seeded()
    fit(masked, pruning(mode="mask"), SameNumbersEachStep(), max_epochs=3)
    removed, callback = seeded(), pruning(mode="mask", remove_at_end=True)
    fit(removed, callback, SameNumbersEachStep(), max_epochs=3)
    assert callback.report is not None
    assert num_parameters(removed) == callback.report.after.parameters < num_parameters(masked)
    images = digits(64, start=500).tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(removed.eval()(images), masked.eval()(images))
    assert int((masked.net[3].weight.flatten(1).abs().sum(1) == 0).sum()) > 0


@pytest.mark.slow
def test_masked_and_removed_training_go_the_same_way() -> None:
    """Dropout draws a number for each channel, so it is switched off here; Adam would blow rounding up."""

    class Momentum(Digits):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)

    outputs = []
    for mode in ("mask", "remove"):
        torch.manual_seed(0)
        model = Momentum().double()
        model.net[9].p = 0.0
        callback = pruning(mode=mode, **TWICE)
        trainer = make_trainer(callback, max_epochs=5, gradient_clip_val=0.1, precision="64-true")
        train, val = loaders()
        trainer.fit(model, DataLoader(train.dataset, batch_size=32), val)
        with torch.no_grad():
            outputs.append(model.eval()(digits(64, start=500).tensors[0].double()))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", [{}, {"schedule": "linear", "end_epoch": 1}], ids=["once", "twice"])
def test_restoring_brings_the_weights_back(masked: dict[str, Any]) -> None:
    """With a learning rate of zero, so that the weights between two masks are those from before."""

    class Restore(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.before = getattr(self, "before", None) or {n: p.clone() for n, p in pl_module.named_parameters()}

    class RestoreAfterMasking(pl.Callback):
        def __init__(self, callback: UnitPruning) -> None:
            self.callback = callback

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if self.callback._mask is not None and trainer.current_epoch == trainer.max_epochs - 1:
                assert any(int((p == 0).sum()) > 10 for p in pl_module.parameters())
                self.callback.restore_masked()
                self.found = {n: p.clone() for n, p in pl_module.named_parameters()}

    class Still(Digits):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    torch.manual_seed(0)
    model, callback, before = Still(), pruning(mode="mask", start_epoch=0, **masked), Restore()
    after = RestoreAfterMasking(callback)
    fit(model, before, callback, after, max_epochs=2)
    for name, values in before.before.items():
        assert torch.equal(values, after.found[name]), name
    with pytest.raises(SettingError, match="No unit is masked"):
        callback.restore_masked()


@pytest.mark.parametrize(
    ("crash_in", "mode"),
    [
        (2, "remove"),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((2, "mask"), (4, "remove"), (4, "mask"))),
    ],
)
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(mode: str, crash_in: int, tmp_path: Path) -> None:
    train, val = DataLoader(digits(300), batch_size=32), DataLoader(digits(150, start=300), batch_size=32)

    def run(model: Digits, *callbacks: Any, ckpt_path: Any = None) -> UnitPruning:
        callback = UnitPruning(amount=0.4, mode=mode, monitor=monitor(), **TWICE)
        trainer = make_trainer(
            callback, SameNumbersEachStep(), *callbacks, max_epochs=5, enable_checkpointing=saves(callbacks)
        )
        trainer.fit(model, train, val, ckpt_path=ckpt_path)
        return callback

    whole, resumed = seeded(), Digits()
    expected = run(whole)
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    with pytest.raises(RuntimeError, match="power cut"):
        run(seeded(), checkpoint, Crash(crash_in))
    found = run(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert expected.report is not None
    assert found.report is not None
    assert len(expected.report.steps) == 2
    assert found.report.steps == expected.report.steps
    assert len(removals_of(resumed)) == len(removals_of(whole)) == (2 if mode == "remove" else 0)
    for name, values in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], values), name
    for name, values in whole.named_buffers():
        assert torch.equal(dict(resumed.named_buffers())[name], values), name


@pytest.mark.slow
def test_checkpoints_from_before_and_after_removals_load(tmp_path: Path) -> None:
    model = seeded()
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = fit(model, pruning(**TWICE), checkpoint, max_epochs=5)
    sizes = {}
    for epoch in range(5):
        path = tmp_path / f"epoch={epoch}.ckpt"
        torch.load(path, weights_only=True)
        validated = make_trainer(pruning()).validate(Digits(), loaders()[1], ckpt_path=path, verbose=False)
        again = trainer.validate(model, loaders()[1], ckpt_path=path, verbose=False)
        assert validated == again
        loaded = load_pruned(Digits, path)
        for name, values in model.named_parameters():
            assert torch.equal(dict(loaded.named_parameters())[name], values), name
        sizes[epoch] = num_parameters(loaded)
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3] == sizes[4]
    assert sizes[0] == num_parameters(Digits())


def test_weights_alone_carry_the_removals_too(tmp_path: Path) -> None:
    model = seeded()
    fit(model, pruning(), ModelCheckpoint(tmp_path, filename="w", save_weights_only=True))
    loaded = load_pruned(Digits, tmp_path / "w.ckpt")
    assert num_parameters(loaded) == num_parameters(model) < num_parameters(Digits())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_two_processes_end_with_the_same_network(mode: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PL_TORCH_DISTRIBUTED_BACKEND": "gloo", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([sys.executable, SCRIPT, "2", mode, tmp_path], check=True, env=environment, timeout=300)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    weights = {name: values for name, values in one["weights"].items() if isinstance(values, Tensor)}
    for name, values in weights.items():
        if "running" not in name:  # each process normalises by its own images
            assert torch.equal(values, two["weights"][name]), name
    for name, values in one["gradients"].items():
        assert torch.equal(values, two["gradients"][name]), f"the gradient of {name} was not synchronised"
    if mode == "remove":
        assert weights["net.3.weight"].shape < (7, 6, 3, 3)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"precision": "bf16-mixed"}, id="mixed precision"),
        pytest.param({"accumulate_grad_batches": 2}, id="accumulation"),
        pytest.param({"gradient_clip_val": 0.5}, id="clipping", marks=pytest.mark.slow),
        pytest.param({"inference_mode": False}, id="no inference mode", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on(settings: dict[str, Any]) -> None:
    model, callback = trained(), pruning()
    trainer = fit(model, callback, max_epochs=3, **settings)
    assert callback.report is not None
    assert len(callback.report.steps) == 1
    assert float(trainer.callback_metrics["val_accuracy"]) > 0.2  # right after pruning it is near chance, 0.1
    held = {id(one) for group in trainer.optimizers[0].param_groups for one in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_a_compiled_module_is_pruned(mode: str) -> None:
    model, callback = seeded(), pruning(mode=mode)
    trainer = make_trainer(callback, max_epochs=3)
    trainer.fit(torch.compile(model, backend="eager"), *loaders())
    assert callback.report is not None
    assert callback.report.after.macs <= 0.6 * callback.report.before.macs
    assert (num_parameters(model) < num_parameters(Digits())) == (mode == "remove")


def test_validation_data_are_found_before_the_first_epoch_that_validates() -> None:
    callback = pruning(start_epoch=0)
    fit(seeded(), callback, num_sanity_val_steps=0, check_val_every_n_epoch=2)
    assert callback.report is not None
    assert [step.epoch for step in callback.report.steps] == [0]


def test_the_optimizer_and_its_schedule_are_the_same_objects() -> None:
    class Scheduled(Digits):
        def configure_optimizers(self) -> Any:
            self.optimizer = torch.optim.SGD(
                [{"params": self.net[:6].parameters()}, {"params": self.net[6:].parameters(), "lr": 0.05}],
                lr=0.1,
                momentum=0.9,
            )
            return [self.optimizer], [torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5)]

    model = Scheduled()
    trainer = fit(model, pruning(), max_epochs=3)
    assert trainer.optimizers[0] is model.optimizer
    assert [group["lr"] for group in model.optimizer.param_groups] == [0.0125, 0.00625]
    for parameter in model.parameters():
        assert model.optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
    assert len(model.optimizer.state) == len(list(model.parameters()))


def test_frozen_layers_stay_frozen() -> None:
    model = seeded()
    model.net[0].requires_grad_(False)
    fit(model, pruning(choose_by="mean_activation"))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["net.0.weight", "net.0.bias"]
    assert num_parameters(model) < num_parameters(Digits())


@pytest.mark.slow
def test_the_trainers_monitor_goes_on_and_keeps_the_places_of_units(tmp_path: Path) -> None:
    model, watching = seeded(), monitor(every_n_epochs=1, layers="all")
    logger = pl.loggers.TensorBoardLogger(tmp_path)
    callback = UnitPruning(amount=0.4, choose_by="taylor")
    fit(model, watching, callback, max_epochs=3, logger=logger)
    assert watching.report is not None
    assert watching.report.layers["net.3"].num_units == model.net[3].out_channels
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("unitrole/pruning/macs")}
    assert [event.step for event in events.Scalars("unitrole/pruning/accuracy_before")] == [10]
    assert list(logged) == [0, 10, 30]
    assert logged[30] <= 0.6 * logged[0]
    assert "unitrole/pruning/widths" in events.Tags()["images"]
    assert "unitrole/pruning/report/text_summary" in events.Tags()["tensors"]
    assert {
        f"unitrole/pruning/{key}" for key in ("parameters", "units", "latency_ms", "accuracy", "accuracy_before")
    } <= {*events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"amount": 1.0}, r"amount=1.0; expected a number between 0 and 1, both excluded"),
        ({"amount": 0}, r"amount=0; expected"),
        ({"of": "flops"}, "of='flops'; expected one of macs, parameters, units, layer"),
        ({"choose_by": "magic"}, "choose_by='magic'; expected 'group_norm', 'group_taylor', 'evidence', 'roles', one"),
        ({"amount": "half"}, "amount='half'; expected a number"),
        ({"criterion": "magic"}, "criterion='magic' is not known"),
        ({"mode": "delete"}, "mode='delete'; expected one of remove, mask"),
        ({"max_accuracy_drop": -0.1}, r"max_accuracy_drop=-0.1; expected a number of at least 0"),
        ({"min_units": 0}, "min_units=0; expected an integer of at least 1"),
        ({"round_to": 1.5}, "round_to=1.5; expected an integer"),
        ({"latency_batch": 0}, "latency_batch=0; expected an integer of at least 1, or None"),
        ({"schedule": "sometimes"}, "schedule='sometimes'; expected one of once, linear, cubic, regularised"),
        ({"schedule": "cubic"}, "schedule='cubic' needs end_epoch"),
        ({"schedule": "cubic", "start_epoch": 3, "end_epoch": 2}, "end_epoch=2; expected an integer of at least"),
        ({"every_n_epochs": 0}, "every_n_epochs=0; expected"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        UnitPruning(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layers": ["net.4"]}, "layers names 'net.4', which is not a module of|No layer matches 'net.4'"),
        ({"skip_layers": ["net.99"]}, "skip_layers names 'net.99', which is none of the layers: net.0, net.3"),
        ({"skip_layers": ["net.*"]}, "No layer is left that can be pruned"),
        ({"amount": 0.99}, r"amount=0.99 of the network's macs cannot be removed: .* allow 0\.9"),
        ({"amount": 0.4, "min_units": 6}, "cannot be removed: .* with min_units=6 and round_to=1"),
    ],
)
def test_a_setting_that_does_not_fit_the_model_changes_nothing(settings: dict[str, Any], text: str) -> None:
    model = seeded()
    with pytest.raises(SettingError, match=text):
        fit(model, pruning(**{"start_epoch": 0, **settings}))
    assert hooks_of(model) == 0
    for (name, values), expected in zip(model.named_parameters(), seeded().parameters(), strict=True):
        assert torch.equal(values, expected), name


def test_a_strategy_that_splits_parameters_is_refused() -> None:
    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        """The real one needs a GPU; what counts is its name."""

    strategy = FSDPStrategy(accelerator=pl.accelerators.CPUAccelerator())
    with pytest.raises(SettingError, match=r"FSDPStrategy splits them\. Train with DDP, or prune the trained network"):
        fit(seeded(), pruning(), strategy=strategy, accelerator="auto")


def test_works_in_the_other_lightning() -> None:
    callback = pruning()
    fit_in_the_other_lightning(callback, max_epochs=2)
    assert callback.report is not None
    assert callback.report.after.macs <= 0.6 * callback.report.before.macs


def test_without_torch_pruning_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(
        BackendError, match=r"needs the library Torch-Pruning: pip install 'lightning-unitrole\[prune\]'"
    ):
        fit(seeded(), pruning())


def test_an_average_of_weights_is_refused() -> None:
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=1e-2)
    with pytest.raises(SettingError, match="cannot prune the average of the weights that StochasticWeightAveraging"):
        fit(seeded(), pruning(), averaging)


@adafactor
def test_an_optimizer_with_a_strange_memory_is_refused_and_nothing_is_changed() -> None:
    class Factored(Digits):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adafactor(self.parameters())

    model = Factored()
    with pytest.raises(SettingError, match=r"Adafactor keeps 'row_var' of shape .* use mode='mask'|Use mode='mask'"):
        fit(model, pruning())
    assert num_parameters(model) == num_parameters(Digits())
    fit(model, pruning(mode="mask"))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
@pytest.mark.filterwarnings("ignore:There is no validation batch")
def test_without_validation_data_nothing_is_pruned() -> None:
    model = seeded()
    with pytest.raises(SettingError, match="There is no validation batch"):
        make_trainer(pruning()).fit(model, loaders()[0])
    assert num_parameters(model) == num_parameters(Digits())


def test_a_module_that_cannot_be_called_is_told_whose_argument_it_needs() -> None:
    class Mute(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained_net()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            """Nothing that a loss could be seen in."""

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    with pytest.raises(DataError, match=r"Pass forward_fn=.*arguments of UnitRoleMonitor: UnitPruning\(monitor="):
        fit(Mute(), UnitPruning(amount=0.4))
    with pytest.raises(DataError, match=r"Pass forward_fn=.*arguments of UnitRoleMonitor: UnitPruning\(monitor="):
        UnitPruning().preview(Mute(), data=loaders()[1])
    asked = monitor(forward_fn=lambda module, images: module.net(images), batch_fn=lambda batch: (batch[0], batch[1]))
    fit(model := Mute(), UnitPruning(amount=0.4, monitor=asked))
    assert num_parameters(model) < num_parameters(Digits())


def test_a_history_of_another_network_is_refused(tmp_path: Path) -> None:
    class Wider(Digits):
        def __init__(self) -> None:
            super().__init__()
            self.net[0] = nn.Conv2d(1, 8, 3, padding=1)

    fit(seeded(), pruning(), ModelCheckpoint(tmp_path, filename="w"))
    with pytest.raises(DataError, match=r"does not fit this Wider: 'net.0.* has shape \[8.*expected \[6"):
        load_pruned(Wider, tmp_path / "w.ckpt")


def test_a_newer_state_is_refused() -> None:
    with pytest.raises(DataError, match="UnitPruning state of version 2; this version of lightning-unitrole reads up"):
        UnitPruning().load_state_dict({"version": 2})


def test_units_that_hang_together_are_taken_together_by_name() -> None:
    class Residual(Digits):
        def __init__(self) -> None:
            super().__init__()
            self.net[0] = nn.Conv2d(1, 7, 3, padding=1)
            self.net[1] = nn.BatchNorm2d(7)
            self.net[3] = nn.Conv2d(7, 7, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            first = self.net[2](self.net[1](self.net[0](images)))
            return self.net[6:](torch.relu(first + self.net[4](self.net[3](first))))

    torch.manual_seed(0)
    model = Residual()
    with pytest.raises(SettingError, match=r"'net.0' cannot be pruned without 'net.3', which skip_layers names"):
        fit(model, pruning(layers=["net.0"], skip_layers=["net.3"]))
    fit(model, pruning(layers=["net.0", "net.3"], of="layer", amount=0.5))
    assert model.net[0].out_channels == model.net[3].out_channels == model.net[3].in_channels == 4
    fit(Residual(), pruning(layers=["net.7"], amount=0.5, of="layer", round_to=4))
