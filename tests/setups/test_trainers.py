"""Trainers as people set them up around the monitor."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import people
import pytest
import pytorch_lightning as pl
import torch
from networks import mostly_slow
from people import CLASSES, Items, Plain, loaders, pair
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from support import make_trainer
from test_setups import fit, monitor
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from lightning_unitrole import UnitReport, analyze

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Swapping scheduler"),
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback"),
    pytest.mark.filterwarnings("ignore:.*checkpoint directory"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    pl.seed_everything(0)


def of_network(net: nn.Module, *, layers: Any = "auto") -> UnitReport:
    """What ``analyze`` says of a network, on the same images."""
    train, val = loaders()
    quick: dict[str, Any] = {"images_per_class": 6, "curve_images": 4, "ablation_points": 8, "backend": "torch"}
    return analyze(net.eval(), train, val, layers=layers, **quick)


def assert_same(report: UnitReport, other: UnitReport, *, prefix: str = "net.") -> None:
    """Equal entropies, contributions and curves, whatever the layers are called."""
    assert {name.removeprefix(prefix) for name in report.layers} == set(other.layers)
    for name, layer in report.layers.items():
        wanted = other.layers[name.removeprefix(prefix)]
        for side in ("train", "val"):
            one, two = getattr(layer, side), getattr(wanted, side)
            torch.testing.assert_close(one.entropy, two.entropy, equal_nan=True)
            torch.testing.assert_close(one.contributions.sums, two.contributions.sums, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            layer.val.curves["least_first"].loss, wanted.val.curves["least_first"].loss, rtol=1e-4, atol=1e-6
        )


class Validated(pl.Callback):
    """Keeps the network of each validation run."""

    def __init__(self) -> None:
        self.nets: list[nn.Module] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.nets.append(copy.deepcopy(pl_module.net))


def average() -> Any:
    """Exponential moving averages that lag far behind."""
    return pl.callbacks.WeightAveraging(avg_fn=lambda averaged, current, number: 0.9 * averaged + 0.1 * current)


@pytest.mark.skipif(not hasattr(pl.callbacks, "WeightAveraging"), reason="Lightning has it since 2.6")
@pytest.mark.parametrize("roles", mostly_slow(["contribution", "turning_point"], quick=["turning_point"]))
def test_the_network_that_was_validated_is_analysed_where_weights_are_averaged(roles: str) -> None:
    watch, validated = monitor(roles=roles, layers="all"), Validated()
    report = fit(Plain(), loaders(), watch, average(), validated)
    train, val = loaders()
    quick: dict[str, Any] = {"images_per_class": 6, "ablation_points": 8, "backend": "torch", "roles": roles}
    wanted = analyze(validated.nets[-1].eval(), train, val, layers="all", **quick)
    for name, layer in report.layers.items():
        for side in ("train", "val"):
            found, truth = getattr(layer, side), getattr(wanted.layers[name.removeprefix("net.")], side)
            torch.testing.assert_close(found.entropy, truth.entropy, equal_nan=True)
            torch.testing.assert_close(found.score, truth.score, equal_nan=True, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_averaging_at_the_end_is_followed_by_an_analysis_of_what_it_made() -> None:
    watch, module = monitor(every_n_epochs="auto"), Plain()
    averaging = StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1)
    trainer = make_trainer(averaging, watch, max_epochs=3)
    trainer.fit(module, *loaders())
    assert watch.report is not None
    assert_same(watch.report, of_network(module.net))


@pytest.mark.slow
def test_a_fitted_module_can_be_validated() -> None:
    train, val = loaders()
    watch, module = monitor(), Plain()
    trainer = make_trainer(watch, max_epochs=1)
    trainer.fit(module, train, val)
    before = watch.report
    trainer.validate(module, val)
    assert watch.report is not before
    assert watch.report is not None
    assert_same(watch.report, of_network(module.net))


@pytest.mark.slow
def test_a_monitor_that_is_used_again_begins_anew() -> None:
    watch, (train, val) = monitor(), loaders()
    trainer = make_trainer(watch, max_epochs=2)
    trainer.fit(Plain(), train, val)
    assert len(watch.history) == 1
    other = Plain()
    trainer.validate(other, val)
    assert not watch.history


@pytest.mark.parametrize("kind", [dict, pytest.param(list, marks=pytest.mark.slow)])
def test_several_validation_loaders(kind: type) -> None:
    train, val = loaders()
    both = {"one": DataLoader(Items(8, 5, pair), batch_size=4), "two": val}
    watch, module = monitor(val_dataloader_idx=1), people.SeveralLoaders()
    report = fit(module, (train, both if kind is dict else list(both.values())), watch)
    assert_same(report, of_network(module.net))


@pytest.mark.slow
def test_a_data_module() -> None:
    module = Plain()
    assert_same(fit(module, {"datamodule": people.Data()}, monitor()), of_network(module.net))


@pytest.mark.slow
def test_manual_optimisation_with_two_optimizers() -> None:
    module = people.Manual()
    assert_same(fit(module, loaders(), monitor()), of_network(module.net))


def mix(samples: list[Any]) -> Any:
    """MixUp, as torchvision's does it in a collate function."""
    images, labels = default_collate(samples)
    share = torch.rand(1)
    soft = F.one_hot(labels, CLASSES).float()
    return share * images + (1 - share) * images.roll(1, 0), share * soft + (1 - share) * soft.roll(1, 0)


def test_mixed_training_images_are_read_unmixed() -> None:
    train = DataLoader(Items(people.TRAIN, 0, pair), batch_size=16, collate_fn=mix)
    module = people.SoftLabels()
    assert_same(fit(module, (train, loaders()[1]), monitor()), of_network(module.net))


def test_callbacks_that_wait_for_a_key_find_it(tmp_path: Path) -> None:
    watch = monitor(every_n_epochs=2)
    waiting = [
        EarlyStopping("unitrole_ranking_gap/net.6/val", patience=5),
        ModelCheckpoint(tmp_path, monitor="unitrole_ranking_gap/net.6/val", filename="best"),
    ]
    make_trainer(*waiting, watch, max_epochs=4, enable_checkpointing=True).fit(Plain(), *loaders())
    assert [*map(_epoch, watch.history), _epoch(watch.report)] == [0, 1, 3]
    assert (tmp_path / "best.ckpt").exists()


def _epoch(report: UnitReport | None) -> int:
    assert report is not None
    return report.epoch


@pytest.mark.slow
def test_an_epoch_that_is_not_validated_is_made_up_for() -> None:
    watch = monitor(every_n_epochs=3)
    make_trainer(watch, max_epochs=10, check_val_every_n_epoch=2, limit_train_batches=1).fit(Plain(), *loaders())
    assert [*map(_epoch, watch.history), _epoch(watch.report)] == [3, 5, 9]


@pytest.mark.slow
def test_no_report_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    watch = monitor(every_n_epochs=5)
    with caplog.at_level("INFO"):
        make_trainer(watch, max_epochs=2).fit(Plain(), *loaders())
    assert watch.report is None
    assert "made no report" in caplog.text
    assert "every_n_epochs=5" in caplog.text


class Lazy(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.LazyConv2d(6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(CLASSES)
        )


@pytest.mark.parametrize("sanity", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_lazy_modules(sanity: int) -> None:
    module = Lazy()
    report = fit(module, loaders(), monitor(), num_sanity_val_steps=sanity)
    assert_same(report, of_network(module.net))


def parametrised(kind: str) -> nn.Module:
    """A network whose convolutions compute their weights."""
    net = people.backbone()
    for module in net:
        if isinstance(module, nn.Conv2d):
            if kind == "pruned":
                nn.utils.prune.l1_unstructured(module, "weight", 0.3)  # type: ignore[no-untyped-call]
            elif kind == "spectral":
                nn.utils.parametrizations.spectral_norm(module)
            elif kind == "old":
                nn.utils.weight_norm(module)  # type: ignore[no-untyped-call]
            else:
                nn.utils.parametrizations.weight_norm(module)
    return net


@pytest.mark.parametrize("kind", mostly_slow(["weight", "old", "spectral", "pruned"], quick=["weight"]))
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weights_that_are_computed(kind: str) -> None:
    module = Plain(parametrised(kind))
    report = fit(module, loaders(), monitor(layers="all"))
    assert set(report.layers) == {"net.0", "net.2", "net.6"}
    assert_same(report, of_network(module.net, layers="all"))


@pytest.mark.slow
def test_compiled_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    net = people.backbone().eval()
    compiled = torch.compile(net, backend="eager")
    train, val = loaders()
    quick: dict[str, Any] = {"images_per_class": 6, "curve_images": 4, "ablation_points": 8, "backend": "torch"}
    report = analyze(compiled, train, val, **quick)  # type: ignore[arg-type]
    assert_same(report, of_network(net), prefix="")


@pytest.mark.slow
def test_channels_last() -> None:
    module = Plain(people.backbone().to(memory_format=torch.channels_last))
    assert_same(fit(module, loaders(), monitor()), of_network(module.net))


class SwappedByHand(pl.Callback):
    """An average as people write it."""

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.kept = copy.deepcopy(pl_module.state_dict())
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter *= 0.5

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.kept)


@pytest.mark.slow
def test_an_average_as_people_write_it() -> None:
    watch, validated = monitor(), Validated()
    report = fit(Plain(), loaders(), watch, SwappedByHand(), validated)
    assert_same(report, of_network(validated.nets[-1]))


SPAWNED = """
import sys
sys.path[:0] = {paths!r}
import pytorch_lightning as pl
from people import Plain, loaders
from test_setups import monitor

if __name__ == "__main__":
    watch = monitor()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy="ddp_spawn", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch],
    )
    trainer.fit(Plain(), *loaders())
    print("epochs", [one.epoch for one in (*watch.history, watch.report)])
"""


@pytest.mark.slow
def test_reports_of_spawned_processes_come_back(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED.format(paths=[str(here), str(here.parent)]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert "epochs [0, 1]" in done.stdout, done.stderr[-2000:]
