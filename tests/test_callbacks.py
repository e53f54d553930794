"""The monitor in real trainers, on real images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from support import Digits, digits, fit_in_the_other_lightning, hooks_of, loaders, make_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_unitrole.callbacks import UnitRoleMonitor
from lightning_unitrole.errors import BackendError, DataError, SettingError
from lightning_unitrole.reports.report import UnitReport

pytestmark = [
    # Lightning's advice on the number of workers and the logging interval is not what is tested here.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # torch's own deprecations, raised by Lightning.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # Networks that were trained for an epoch or two are rarely ranked well; the warning has a test of its own.
    pytest.mark.filterwarnings("ignore:The order by"),
]


def monitor(**settings: Any) -> UnitRoleMonitor:
    """A monitor with the published roles, in every epoch; the defaults have tests of their own."""
    quick: dict[str, Any] = {"images_per_class": 8, "ablation_points": 5, "backend": "torch"}
    return UnitRoleMonitor(**{**quick, "roles": "turning_point", "every_n_epochs": 1, **settings})


def fit(*callbacks: Any, seed: int = 3, model: pl.LightningModule | None = None, **settings: Any) -> pl.LightningModule:
    pl.seed_everything(seed)
    model = model or Digits()
    make_trainer(*callbacks, **settings).fit(model, *loaders())
    return model


def assert_same_report(one: UnitReport, other: UnitReport, *, losses: float = 0.0) -> None:
    """Equal to the last count; losses up to a tolerance, where batches are cut differently."""
    left, right = one.state_dict(), other.state_dict()
    assert left["meta"] == right["meta"]
    assert left["arrays"].keys() == right["arrays"].keys()
    for key, values in left["arrays"].items():
        tolerance = losses if key.endswith("loss") else 0
        torch.testing.assert_close(
            values, right["arrays"][key], rtol=tolerance, atol=tolerance, equal_nan=True, msg=key
        )


def test_one_line_in_the_trainer_gives_a_report() -> None:
    watched = monitor()
    fit(watched)
    assert watched.report is not None
    assert list(watched.report.layers) == ["net.3", "net.7"]  # the last convolution at 16x16 and at 8x8
    assert watched.report.epoch == 1
    assert [report.epoch for report in watched.history] == [0]
    layer = watched.report.layers["net.7"]
    assert layer.roles.shape == (10, 9)
    assert layer.train.images.tolist() == layer.val.images.tolist() == [8] * 10
    assert layer.val.curves["least_first"].ablated[-1] == 9
    assert sum(layer.role_shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "interval",
    [pytest.param(1.0, id="once_an_epoch"), pytest.param(0.5, id="in_mid_epoch", marks=pytest.mark.slow)],
)
def test_weights_are_bit_identical_with_and_without_the_monitor(interval: float) -> None:
    def train(*callbacks: Any) -> dict[str, Tensor]:
        return fit(*callbacks, val_check_interval=interval).state_dict()

    plain, watched = train(), train(monitor(criterion="taylor"))
    for name, values in plain.items():
        assert torch.equal(values, watched[name]), name


@pytest.mark.slow
def test_weights_are_bit_identical_with_persistent_workers_and_augmentation() -> None:
    class Jittered(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image + 0.05 * torch.randn_like(image), label

    def train(*callbacks: Any) -> dict[str, Tensor]:
        pl.seed_everything(5, workers=True)
        model = Digits()
        train_set = Jittered(*digits(200).tensors)
        workers = {"num_workers": 1, "persistent_workers": True}
        trainer = make_trainer(*callbacks, val_check_interval=0.5)
        trainer.fit(
            model, DataLoader(train_set, 32, shuffle=True, **workers), DataLoader(digits(80, start=300), 32, **workers)
        )
        return model.state_dict()

    plain, watched = train(), train(monitor(images_per_class=4))
    assert all(torch.equal(values, watched[name]) for name, values in plain.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_reports_what_the_uninterrupted_run_reports(tmp_path: Path) -> None:
    def train(watched: UnitRoleMonitor, epochs: int, *callbacks: Any, **settings: Any) -> dict[str, Tensor]:
        """Without dropout and shuffling, whose random state Lightning does not restore."""
        pl.seed_everything(3)
        model = Digits()
        model.net[9].p = 0.0
        train, val = loaders()
        trainer = make_trainer(watched, *callbacks, max_epochs=epochs, enable_checkpointing=bool(callbacks))
        trainer.fit(model, DataLoader(train.dataset, batch_size=32), val, **settings)
        return trainer.callback_metrics

    through, first, second = monitor(), monitor(), monitor()
    uninterrupted = train(through, 3)
    train(first, 2, ModelCheckpoint(dirpath=tmp_path, filename="stopped"))
    resumed = train(
        second,
        3,
        ModelCheckpoint(dirpath=tmp_path, filename="stopped"),
        ckpt_path=tmp_path / "stopped.ckpt",
        weights_only=True,
    )
    assert through.report is not None
    assert second.report is not None
    assert second.history == []  # a checkpoint holds the latest roles alone
    assert_same_report(second.report, through.report)
    assert "unitrole/net.7/role_stability" in resumed
    for key, value in uninterrupted.items():
        if key.startswith("unitrole/"):
            assert resumed[key] == value, key


@pytest.mark.slow
def test_live_recording_equals_a_pass_over_the_same_images(tmp_path: Path) -> None:
    """A shuffled validation set cannot be tapped, so its images run through the model once more."""
    tapped, probed = monitor(), monitor()
    model = fit(tapped)
    train, val = loaders()
    shuffled = DataLoader(val.dataset, batch_size=32, shuffle=True)
    for watched, loader in ((tapped, val), (probed, shuffled)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Your `val_dataloader`'s sampler has shuffling enabled")
            watched.train_data = train
            watched.history, watched.report = [], None
            make_trainer(watched).validate(model, loader)
    assert tapped.report is not None
    assert probed.report is not None
    assert_same_report(tapped.report, probed.report)


def test_validate_works_without_fit() -> None:
    watched = monitor(train_data=digits(300))
    make_trainer(watched).validate(Digits(), loaders()[1])
    assert watched.report is not None
    assert watched.report.layers["net.7"].roles.shape == (10, 9)


def test_validate_without_training_data_says_what_to_pass() -> None:
    with pytest.raises(SettingError, match=r"needs training images.*are none\. Pass train_data="):
        make_trainer(monitor()).validate(Digits(), loaders()[1])


def test_works_in_the_other_lightning() -> None:
    watched = monitor()
    fit_in_the_other_lightning(watched, max_epochs=1)
    assert watched.report is not None


def test_bfloat16_mixed_precision_works() -> None:
    watched = monitor()
    fit(watched, precision="bf16-mixed", max_epochs=1)
    assert watched.report is not None
    assert not watched.report.layers["net.7"].val.non_finite.any()


def test_the_sanity_check_is_skipped() -> None:
    watched = monitor()
    fit(watched, max_epochs=1, num_sanity_val_steps=2)
    assert watched.report is not None
    assert watched.history == []


def test_every_n_epochs() -> None:
    watched = monitor(every_n_epochs=2, ablation_points=0)
    fit(watched, max_epochs=5)
    assert watched.report is not None
    assert [report.epoch for report in [*watched.history, watched.report]] == [1, 3]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "interrupt"])
def test_no_hook_stays_whatever_ends_the_run(error: type[BaseException]) -> None:
    class Breaks(Digits):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == 1 and not self.trainer.sanity_checking:
                assert hooks_of(self) > 0
                raise error("stop here")

    model = Breaks()
    # Lightning before 2.5 ends quietly at an interrupt.
    ends = pytest.raises(error) if error is RuntimeError else suppress(error, SystemExit)
    with ends:
        fit(monitor(images_per_class=12), model=model)
    assert hooks_of(model) == 0


@pytest.mark.parametrize("roles", ["turning_point", pytest.param("contribution", marks=pytest.mark.slow)])
def test_a_ranking_no_better_than_chance_is_said_once_with_a_better_criterion(roles: Any) -> None:
    watched = monitor(criterion=lambda statistics: statistics.activation * 0, compare_criteria="suspect", roles=roles)
    with pytest.warns(UserWarning, match=r"The order by <lambda> is no better than a random one in") as caught:
        fit(watched)
    [said] = [str(warning.message) for warning in caught if "The order by" in str(warning.message)]
    assert ("Roles by contribution do not depend on it." in said) == (roles == "contribution")
    assert "pass criterion=" in said or "No other criterion does better" in said


@pytest.mark.parametrize("when", ["end", pytest.param("every", marks=pytest.mark.slow)])
def test_criteria_are_compared_in_tensorboard(tmp_path: Path, when: str) -> None:
    watched = monitor(compare_criteria=when, layers="net.7")
    fit(watched, max_epochs=1, logger=TensorBoardLogger(tmp_path, name="", version=""))
    assert "unitrole_criteria/net.7" in EventAccumulator(str(tmp_path)).Reload().Tags()["images"]


def test_a_fault_at_a_tap_does_not_break_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, maps: Tensor, groups: Tensor, halves: Tensor) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("lightning_unitrole.analysis.statistics.UnitRecorder.update", broken)
    with pytest.warns(UserWarning, match="could not be analysed, and training goes on. RuntimeError: out of luck"):
        model = fit(monitor(), max_epochs=1)
    assert hooks_of(model) == 0


def test_no_hook_stays_after_a_good_run() -> None:
    assert hooks_of(fit(monitor(), max_epochs=1)) == 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "collate",
    [
        lambda rows: {"image": torch.stack([r[0] for r in rows]), "label": torch.stack([r[1] for r in rows])},
        pytest.param(
            lambda rows: [torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows])], marks=pytest.mark.slow
        ),
    ],
    ids=["dict", "list"],
)
def test_batches_may_be_dicts_or_lists(collate: Callable[[Any], Any]) -> None:
    class Unpacking(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(tuple(batch.values()) if isinstance(batch, dict) else batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(tuple(batch.values()) if isinstance(batch, dict) else batch, batch_idx)

    watched, plain = monitor(), monitor()
    pl.seed_everything(3)
    make_trainer(watched, max_epochs=1).fit(Unpacking(), *loaders(collate_fn=collate))
    fit(plain, max_epochs=1)
    assert watched.report is not None
    assert plain.report is not None
    assert_same_report(watched.report, plain.report)


def test_a_batch_without_labels_warns_once_and_training_goes_on() -> None:
    watched = monitor(batch_fn=lambda batch: batch[0])
    with pytest.warns(UserWarning, match=r"batch_fn returned a float32 tensor.*expected a pair") as caught:
        fit(watched)
    assert len([w for w in caught if "could not be analysed" in str(w.message)]) == 1
    assert watched.report is None


def test_labels_out_of_range_warn_and_training_goes_on() -> None:
    watched = monitor(num_classes=5)
    with pytest.warns(UserWarning, match=r"holds labels from 0 to 9; expected 0 to 4"):
        fit(watched, max_epochs=1)


def test_maps_with_nan_are_counted_apart_and_reported_once() -> None:
    class Poisoned(Digits):
        def forward(self, images: Tensor) -> Tensor:
            maps = self.net[:3](images)
            if not self.training:
                maps = maps.clone()
                maps[:, 2] = torch.nan
            return self.net[3:](maps.nan_to_num(0)) if self.training else self.net[3:](maps)

    watched = monitor(layers="net.3")
    with pytest.warns(
        UserWarning, match=r"Maps with NaN or infinity.*'net\.3' \(560 training, 560 validation\)"
    ) as caught:
        fit(watched, model=Poisoned())
    assert len([w for w in caught if "NaN or infinity" in str(w.message)]) == 1
    assert watched.report is not None


def test_too_few_images_says_how_many_there_are() -> None:
    watched = monitor(images_per_class=25)
    with pytest.warns(
        UserWarning, match=r"images_per_class=25, but 10 of 10 classes have fewer\. Training and validation"
    ):
        fit(watched, max_epochs=1)
    assert watched.report is not None
    layer = watched.report.layers["net.7"]
    assert layer.train.images.tolist() == layer.val.images.tolist()
    assert max(layer.train.images.tolist()) < 25


def test_a_class_without_images_gets_no_role_and_is_named() -> None:
    def without(dataset: TensorDataset, label: int) -> TensorDataset:
        keep = dataset.tensors[1] != label
        return TensorDataset(*(tensor[keep] for tensor in dataset.tensors))

    watched = monitor()
    pl.seed_everything(0)
    train, val = loaders()
    with pytest.warns(UserWarning, match="No roles for '4': one side has no image of it"):
        make_trainer(watched, max_epochs=1).fit(Digits(), train, DataLoader(without(val.dataset, 4), 32))  # type: ignore[arg-type]
    assert watched.report is not None
    assert (watched.report.layers["net.7"].roles[4] == 255).all()


def test_an_unknown_layer_fails_in_setup_and_names_those_that_exist() -> None:
    with pytest.raises(SettingError, match=r"'net\.4x', which is not a module of Digits.*net\.0, net\.3, net\.7"):
        fit(monitor(layers="net.4x"))


def test_a_glob_that_matches_nothing_fails_before_training() -> None:
    with pytest.raises(SettingError, match=r"No layer matches 'body\.\*'"):
        fit(monitor(layers=["body.*"]))


def test_a_backend_that_cannot_run_fails_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="triton"):
        fit(monitor(backend="triton"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images_per_class": 0}, r"images_per_class=0; expected an integer of at least 1"),
        ({"every_n_epochs": 0}, r"every_n_epochs=0; expected an integer of at least 1"),
        ({"ablation_points": -1}, r"ablation_points=-1; expected an integer of at least 0"),
        ({"max_density": 1.5}, r"max_density=1.5; expected a number above 0"),
        ({"criterion": "entropy"}, r"criterion='entropy' is not known; expected one of feature_entropy"),
        ({"backend": "cuda"}, r"backend='cuda'; expected one of auto"),
        ({"class_names": ["a"], "num_classes": 2}, r"class_names has 1 entries and num_classes=2"),
        ({"compare_criteria": "often"}, r"compare_criteria='often'; expected one of never, suspect, end, every"),
        ({"group_fn": len}, r"group_fn is given without num_classes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_fail_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        UnitRoleMonitor(**settings)


@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
def test_an_empty_validation_set_is_said() -> None:
    watched = monitor()
    pl.seed_everything(0)
    empty = DataLoader(TensorDataset(*digits(0).tensors), batch_size=32)
    with pytest.warns(UserWarning, match=r"There is no validation batch, so UnitRoleMonitor has nothing to analyse"):
        make_trainer(watched, max_epochs=1).fit(Digits(), loaders()[0], empty)
    assert watched.report is None


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "bar",
    [TQDMProgressBar, lambda: RichProgressBar(console_kwargs={"force_terminal": True})],
    ids=["tqdm", "rich"],
)
def test_long_work_shows_a_bar_in_the_trainers_style(
    bar: Callable[[], pl.Callback], capfd: pytest.CaptureFixture[str]
) -> None:
    fit(monitor(), bar(), max_epochs=1, enable_progress_bar=True)
    assert "Unit roles: ablation" in "".join(capfd.readouterr())


@pytest.mark.slow
def test_iterable_data_are_read_as_a_stream() -> None:
    class Stream(IterableDataset[Any]):
        def __init__(self, source: TensorDataset) -> None:
            self.source = source

        def __iter__(self) -> Any:
            return iter(self.source[index] for index in range(len(self.source)))

    streamed, indexed = monitor(), monitor()
    train, val = loaders()
    model = fit(indexed, max_epochs=1)
    for watched, pair in ((streamed, [Stream(loader.dataset) for loader in (train, val)]), (indexed, [train, val])):  # type: ignore[arg-type]
        watched.train_data = DataLoader(pair[0], 32) if watched is streamed else pair[0]
        watched.history, watched.report = [], None
        make_trainer(watched).validate(model, DataLoader(pair[1], 32) if watched is streamed else val)
    assert streamed.report is not None
    assert indexed.report is not None
    assert_same_report(streamed.report, indexed.report, losses=1e-6)


@pytest.mark.slow
def test_tensorboard_gets_scalars_histograms_figures_and_a_layout(tmp_path: Path) -> None:
    watched = monitor()
    fit(watched, max_epochs=1, logger=TensorBoardLogger(tmp_path, name="", version=""))
    log = EventAccumulator(str(tmp_path)).Reload()
    tags = log.Tags()
    roles = [f"unitrole_role_share/net.7/{role}" for role in ("both", "train_only", "val_only", "neither")]
    assert {*roles, "unitrole_feature_entropy/net.7/train", "unitrole_ranking_gap/net.7/val"} <= set(tags["scalars"])
    assert not [tag for tag in tags["scalars"] if tag.startswith("unitrole/")]  # measures have groups of their own
    assert {"unitrole_ablation/net.7", "unitrole_roles/net.7"} <= set(tags["images"])
    assert "unitrole_feature_entropy/net.7" in tags["histograms"]
    assert "custom_scalars__config__" in tags["tensors"]
    shares = [log.Scalars(role)[0].value for role in roles]
    assert sum(shares) == pytest.approx(1)


@pytest.mark.slow
def test_monitors_with_names_log_side_by_side(tmp_path: Path) -> None:
    watching = [monitor(layers="net.7", name="a"), monitor(layers="net.7", name="b", criterion="filter_norm")]
    trainer = make_trainer(*watching, max_epochs=1, logger=TensorBoardLogger(tmp_path, name="", version=""))
    trainer.fit(Digits(), *loaders())
    runs = [EventAccumulator(str(folder)).Reload() for folder in (tmp_path, tmp_path / "a", tmp_path / "b")]
    scalars = runs[0].Tags()["scalars"]
    for name, run in zip("ab", runs[1:], strict=True):
        assert f"unitrole_feature_entropy/{name}/net.7/val" in scalars
        assert f"unitrole/{name}/net.7/feature_entropy/val" in trainer.callback_metrics
        assert "unitrole_ablation/net.7" in run.Tags()["images"]
        assert any(tag.startswith("unit_roles/") for tag in run.Tags()["tensors"])
    assert not any(tag.startswith("unit_roles/") for tag in runs[0].Tags()["tensors"])


def test_monitors_without_names_are_told_that_they_need_some(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Give each of them a name="):
        fit(monitor(ablation_points=0), monitor(layers="all"), max_epochs=1, logger=CSVLogger(tmp_path))


@pytest.mark.parametrize("name", ["a/b", "..", 3])
def test_names_that_are_no_names_are_refused(name: Any) -> None:
    with pytest.raises(SettingError, match="name="):
        UnitRoleMonitor(name=name)


def test_other_loggers_get_the_scalars(tmp_path: Path) -> None:
    fit(monitor(), max_epochs=1, logger=CSVLogger(tmp_path, name="", version=""))
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert "unitrole_ranking_gap/net.7/val" in header


def test_scalars_can_be_monitored_by_other_callbacks(tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, monitor="unitrole_feature_entropy/net.7/val")
    fit(monitor(), keep, enable_checkpointing=True)
    assert keep.best_model_score is not None


def test_a_former_key_goes_on_working_with_a_warning_that_names_the_present_one(tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path, monitor="unitrole/net.7/feature_entropy/val")
    with pytest.warns(
        FutureWarning, match=r"deprecated and .* 0\.3; write 'unitrole_feature_entropy/net\.7/val' instead"
    ):
        fit(monitor(), keep, enable_checkpointing=True)
    assert keep.best_model_score is not None


def test_a_newer_state_is_refused() -> None:
    with pytest.raises(DataError, match=r"state of version 99; this version of lightning-unitrole reads up to 2"):
        monitor().load_state_dict({"version": 99, "roles": {}})


def test_monitors_that_measure_differently_keep_their_states_apart() -> None:
    assert monitor().state_key != monitor(criterion="apoz").state_key
