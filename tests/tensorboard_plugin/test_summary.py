from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard_plugin.synthetic import CLASSES, CONTRIBUTING, LAYERS, Spec, Training, prune, without_images
from torch.utils.tensorboard import SummaryWriter

from lightning_unitrole.errors import DataError
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.vocabulary import NO_ROLE, REMOVED, UNDECIDED
from lightning_unitrole.tensorboard_plugin.packing import Array, inflate, unpack
from lightning_unitrole.tensorboard_plugin.schema import OVERVIEW_COLUMNS
from lightning_unitrole.tensorboard_plugin.summary import PluginState, _first_state, write_report

SMALL = (Spec("conv1", 6, (8, 8)), Spec("conv2", 4, (4, 4)))


class Log:
    """A log that is written report by report and read back."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.writer = SummaryWriter(directory)
        self.known: PluginState | None = None

    def write(self, report: UnitReport, step: int, **options: Any) -> PluginState:
        self.known = write_report(self.writer, report, step=step, known=self.known, **options)
        return self.known

    def values(self) -> list[tuple[int, Any]]:
        """Every logged value with its step; what is written is on the disk without closing the writer."""
        files = sorted(self.directory.glob("events*"))
        events = [event for file in files for event in EventFileLoader(str(file)).Load()]
        return [(event.step, value) for event in events for value in event.summary.value]

    def tag(self, tag: str) -> dict[int, tuple[dict[str, Any], dict[str, Array]]]:
        found = [(step, value) for step, value in self.values() if value.tag == tag]
        return {step: unpack(inflate(value.tensor.tensor_content)) for step, value in found}

    def overview(self, layer: int = 0) -> dict[int, dict[str, float]]:
        return {
            step: dict(zip(info["columns"], arrays["table"][layer].tolist(), strict=True))
            for step, (info, arrays) in self.tag("unit_roles/overview").items()
        }


@pytest.fixture
def log(tmp_path: Path) -> Any:
    log = Log(tmp_path)
    yield log
    log.writer.close()


def test_every_tensor_names_plugin_and_data_class(log: Log) -> None:
    log.write(Training(SMALL).report(0, 5), 10)
    values = log.values()
    assert {value.tag for _, value in values} == {
        "unit_roles/overview",
        *(f"unit_roles/{layer}/{part}" for layer in ("conv1", "conv2") for part in ("state", "classes", "curves")),
    }
    for step, value in values:
        assert step == 10
        assert value.metadata.plugin_data.plugin_name == "unit_roles"
        assert value.metadata.data_class == DATA_CLASS_TENSOR


def test_the_first_metadata_hold_layers_and_classes(log: Log) -> None:
    log.write(Training(SMALL).report(0, 5), 10)
    (content,) = {value.metadata.plugin_data.content for _, value in log.values()} - {b""}
    index = json.loads(content)
    assert index["layers"] == [
        {"name": "conv1", "units": 6, "map_size": [8, 8]},
        {"name": "conv2", "units": 4, "map_size": [4, 4]},
    ]
    assert index["class_names"] == list(CLASSES)
    assert "roles" not in index, "what roles are called is the reader's business"


def test_state_and_classes_hold_what_the_report_says(log: Log) -> None:
    report = Training(SMALL).report(2, 5)
    log.write(report, 7)
    layer = report.layers["conv1"]
    info, state = log.tag("unit_roles/conv1/state")[7]
    assert (info["epoch"], info["layer"], info["units"]) == (2, "conv1", 6)
    assert state["roles"].tolist() == layer.summary.tolist()
    assert state["rank"][layer.val.overall_order].tolist() == list(range(6))
    np.testing.assert_allclose(state["entropy_val"], layer.val.entropy.nanmean(0), rtol=1e-3)
    np.testing.assert_allclose(state["selective_train"], layer.train.selective_rate.mean(0), rtol=1e-3)
    np.testing.assert_allclose(state["useful"], (layer.roles == UnitRole.BOTH).double().mean(0), rtol=1e-3)
    assert log.tag("unit_roles/conv1/classes")[7][1]["roles"].tolist() == layer.roles.tolist()


def test_a_class_without_images_does_not_count(log: Log) -> None:
    report = without_images(Training(SMALL).report(2, 5), 3)
    log.write(report, 7)
    known = report.layers["conv1"].roles[[0, 1, 2, 4, 5, 6, 7, 8, 9]]
    useful = log.tag("unit_roles/conv1/state")[7][1]["useful"]
    np.testing.assert_allclose(useful, (known == UnitRole.BOTH).double().mean(0), rtol=1e-3)
    assert (log.tag("unit_roles/conv1/classes")[7][1]["roles"][3] == NO_ROLE).all()


def test_a_unit_without_births_has_no_entropy(log: Log) -> None:
    report = Training(SMALL).report(0, 5)
    layer = report.layers["conv1"]
    entropy = layer.val.entropy.clone()
    entropy[:, 1] = torch.nan
    entropy[0, 2] = torch.nan
    changed = replace(layer, val=replace(layer.val, entropy=entropy))
    log.write(replace(report, layers={"conv1": changed}), 1)
    logged = log.tag("unit_roles/conv1/state")[1][1]["entropy_val"]
    assert np.isnan(logged[1])
    assert logged[2] == pytest.approx(float(entropy[1:, 2].mean()), rel=1e-3)


def test_curves_with_their_turning_points(log: Log) -> None:
    report = Training(SMALL, points=4).report(0, 5)
    log.write(report, 1)
    info, points = log.tag("unit_roles/conv2/curves")[1]
    assert len(info["curves"]) == 2 * (3 + len(CLASSES))
    start = 0
    for curve in info["curves"]:
        split = getattr(report.layers["conv2"], curve["split"])
        expected = split.curves[curve["order"]] if curve["class"] is None else split.class_curves[curve["class"]]
        part = slice(start, start + curve["points"])
        assert points["ablated"][part].tolist() == expected.ablated.tolist()
        np.testing.assert_allclose(points["loss"][part], expected.loss, rtol=1e-6)
        np.testing.assert_allclose(points["accuracy"][part], expected.accuracy, atol=1e-3)
        assert curve["turning"] == expected.turning_point
        start += curve["points"]
    assert start == len(points["ablated"])


def test_the_overview_counts_units_pairs_and_changes(log: Log) -> None:
    training = Training(SMALL)
    first, second = training.report(0, 5), training.report(4, 5)
    log.write(first, 10)
    log.write(second, 20)
    rows = log.overview()
    assert list(rows[10]) == list(OVERVIEW_COLUMNS)
    assert np.isnan(rows[10]["units_changed"])
    assert np.isnan(rows[10]["macs"])
    before, after = first.layers["conv1"], second.layers["conv1"]
    assert rows[20]["units_changed"] == pytest.approx(float((before.summary != after.summary).double().mean()))
    assert rows[20]["pairs_changed"] == pytest.approx(float((before.roles != after.roles).double().mean()))
    assert rows[20]["units_both"] == int((after.summary == UnitRole.BOTH).sum())
    assert rows[20]["pairs_train_only"] == pytest.approx(after.role_shares[UnitRole.TRAIN_ONLY])
    assert rows[20]["entropy_q50"] == pytest.approx(float(after.val.entropy.nanmean(0).nanquantile(0.5)), rel=1e-3)
    assert rows[20]["ranking_gap"] == pytest.approx(after.ranking_gap)
    assert rows[20]["turning_val"] == pytest.approx(after.val.curves["least_first"].turning_point / 6)


def test_an_undecided_pair_has_a_share_but_is_neither_useful_nor_a_change(log: Log) -> None:
    report = Training(SMALL).report(2, 5)
    log.write(report, 7)
    layer = report.layers["conv1"]
    roles, summary = layer.roles.clone(), layer.summary.clone()
    roles[0], summary[4] = UNDECIDED, UNDECIDED
    log.write(replace(report, layers={"conv1": replace(layer, roles=roles, summary=summary)}), 8)
    row = log.overview()[8]
    assert row["pairs_undecided"] == pytest.approx(1 / len(CLASSES))
    assert sum(share for name, share in row.items() if name.startswith("pairs_") and "changed" not in name) == (
        pytest.approx(1)
    )
    assert row["units_undecided"] == 1
    assert row["units_changed"] == row["pairs_changed"] == 0
    useful = log.tag("unit_roles/conv1/state")[8][1]["useful"]
    np.testing.assert_allclose(useful, (roles[1:] == UnitRole.BOTH).double().mean(0), rtol=1e-3)


def test_without_ablation_there_are_no_roles_but_entropy(log: Log) -> None:
    log.write(Training(SMALL, ablation=False).report(0, 5), 1)
    assert {value.tag for _, value in log.values()} == {
        "unit_roles/overview",
        "unit_roles/conv1/state",
        "unit_roles/conv2/state",
    }
    state = log.tag("unit_roles/conv1/state")[1][1]
    assert (state["roles"] == NO_ROLE).all()
    assert np.isfinite(state["entropy_val"]).any()
    assert np.isnan(log.overview()[1]["units_both"])


def test_a_removed_unit_stays_removed_and_its_neighbours_keep_their_numbers(log: Log) -> None:
    training = Training(SMALL)
    log.write(training.report(0, 5), 1)
    kept = {"conv1": torch.tensor([5, 0, 3])}
    report = training.report(1, 5, {"conv1": np.array([5, 0, 3])})
    log.write(report, 2, kept=kept)
    summary = report.layers["conv1"].summary.tolist()
    info, state = log.tag("unit_roles/conv1/state")[2]
    assert info["units"] == 6
    assert state["roles"].tolist() == [summary[1], REMOVED, REMOVED, summary[2], REMOVED, summary[0]]
    assert np.isnan(state["entropy_val"]).tolist()[1:3] == [True, True]
    assert log.tag("unit_roles/conv1/classes")[2][1]["roles"][:, 1].tolist() == [REMOVED] * len(CLASSES)
    assert log.overview()[2]["present"] == 3


def test_a_restart_after_pruning_needs_the_original_number_of_units(log: Log) -> None:
    training = Training(SMALL)
    kept = {"conv1": np.array([5, 0, 3])}
    report = training.report(1, 5, kept)
    with pytest.raises(DataError, match=r"Layer 'conv1' is pruned.*original_units=\{'conv1': \.\.\.\}"):
        log.write(report, 2, kept=kept)
    log.write(report, 2, kept=kept, original_units={"conv1": 6})
    assert log.tag("unit_roles/conv1/state")[2][0]["units"] == 6


def test_a_layer_that_shrank_without_a_word_is_an_error(log: Log) -> None:
    training = Training(SMALL)
    log.write(training.report(0, 5), 1)
    report = training.report(1, 5, {"conv1": np.arange(4)})
    with pytest.raises(DataError, match=r"Layer 'conv1' has 4 units; the first report of this run had 6. Pass kept="):
        log.write(report, 2)
    with pytest.raises(DataError, match="expected 4 different indices"):
        log.write(report, 2, kept={"conv1": [0, 1, 2, 2]})
    with pytest.raises(DataError, match="less than 6"):
        log.write(report, 2, kept={"conv1": [0, 1, 2, 6]})


def test_a_layer_that_turns_up_later_is_left_out_with_one_warning(log: Log) -> None:
    training = Training(SMALL)
    report = training.report(0, 5)
    log.write(replace(report, layers={"conv1": report.layers["conv1"]}), 1)
    with pytest.warns(UserWarning, match="Layer 'conv2' was not in the first report"):
        log.write(training.report(1, 5), 2)
    log.write(training.report(2, 5), 3)
    assert not log.tag("unit_roles/conv2/state")
    assert sorted(log.tag("unit_roles/conv1/state")) == [1, 2, 3]


def test_a_layer_that_is_missing_leaves_a_gap(log: Log) -> None:
    training = Training(SMALL)
    log.write(training.report(0, 5), 1)
    report = training.report(1, 5)
    log.write(replace(report, layers={"conv2": report.layers["conv2"]}), 2)
    assert np.isnan(list(log.overview(0)[2].values())).all()
    assert log.overview(1)[2]["present"] == 4
    assert sorted(log.tag("unit_roles/conv1/state")) == [1]


def test_steps_have_to_grow(log: Log) -> None:
    training = Training(SMALL)
    log.write(training.report(0, 5), 5)
    log.write(training.report(1, 5), 5)
    assert log.tag("unit_roles/overview")[5][0]["epoch"] == 0
    with pytest.raises(DataError, match="The report at step 4 comes after one at step 5"):
        log.write(training.report(2, 5), 4)


def test_many_classes_are_bounded(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"class {index}" for index in range(50))
    known = log.write(Training(SMALL[:1], names).report(0, 5), 1, max_classes=30)
    assert known.classes == tuple(range(30))
    assert known.class_names == names
    assert log.tag("unit_roles/conv1/classes")[1][1]["roles"].shape == (30, 6)
    first = Training(SMALL[:1], names).report(0, 5)
    for pairs, classes in ((1 << 20, 50), (180, 30), (6, 20)):
        monkeypatch.setattr("lightning_unitrole.tensorboard_plugin.summary.MAX_PAIRS", pairs)
        assert len(_first_state(first, {}, {}, None).classes) == classes


def test_of_many_classes_the_strongest_of_each_unit_are_logged(log: Log) -> None:
    names = tuple(f"class {index}" for index in range(50))
    report = Training(CONTRIBUTING[:1], names, contributions=True).report(4, 5)
    log.write(report, 1)
    means = report.layers["features.0"].val.contributions.by_class().mean.numpy()
    _, arrays = log.tag("unit_roles/features.0/contributions")[1]
    assert arrays["classes"].shape == arrays["error_train"].shape == (20, 16)
    for unit in range(16):
        strongest = np.argsort(-np.abs(means[:, unit]))[:20]
        assert set(arrays["classes"][:, unit]) == set(strongest)
        logged = means[arrays["classes"][:, unit], unit]
        np.testing.assert_allclose(arrays["contribution_val"][:, unit], logged, rtol=1e-3)
        assert (np.diff(logged) <= 0).all()


def test_a_report_is_small(log: Log) -> None:
    log.write(Training(LAYERS).report(0, 5), 1)
    units = sum(spec.units for spec in LAYERS)
    size = sum(len(value.tensor.tensor_content) for _, value in log.values() if not value.tag.endswith("curves"))
    assert size < units * (13 + len(CLASSES)) + 4000


def test_contributions_keep_it_bounded(log: Log) -> None:
    names = tuple(f"class {index}" for index in range(50))
    log.write(Training(CONTRIBUTING, names, contributions=True).report(0, 5), 1)
    sizes = [len(value.tensor.tensor_content) for _, value in log.values() if not value.tag.endswith("curves")]
    units = sum(spec.units for spec in CONTRIBUTING)
    assert sum(sizes) < units * (23 + 20 * 9) + 6000


def test_contributions_effects_and_the_check(log: Log) -> None:
    report = Training(CONTRIBUTING, contributions=True).report(4, 5)
    log.write(report, 3)
    for place, layer in enumerate(report.layers.values()):
        row = log.overview(place)[3]
        counts = [int((layer.summary_effects.val == effect).sum()) for effect in (1, -1)]
        assert [row[f"units_{name}"] for name in ("help", "hurt")] == counts
        assert row["units_no_effect"] == int(layer.without_effect.sum())
        assert row["units_help_no_class"] == int((layer.effects.val != 1).all(0).sum())
        assert row["units_removable"] == len(layer.removable)
        assert row["differing_share"] == pytest.approx(layer.differing_share)
        assert row["agreement"] == pytest.approx(layer.agreement, nan_ok=True)
        assert row["rank_agreement"] == pytest.approx(layer.val.rank_agreement, nan_ok=True)
        assert row["contribution_gap"] == pytest.approx(layer.val.contribution_gap)
        assert row["margin_val"] == pytest.approx(float(layer.val.contributions.overall().mean.sum()), rel=1e-4)
        assert row["check_removed_accuracy"] == pytest.approx(layer.check.removed_accuracy)
        assert row["check_random_accuracy"] == pytest.approx(float(layer.check.random_accuracy.mean()))
        assert (row["images"], row["check_images"]) == (100, 200)
        assert row["ordered_classes"] == (0 if layer.name == "features.8" else 1)
        assert np.isnan(row["turning_val"]), "a turning point says something only with curves by class"


def test_contributions_of_each_unit_with_their_errors(log: Log) -> None:
    report = Training(CONTRIBUTING[:1], contributions=True).report(4, 5)
    log.write(report, 3)
    layer = report.layers["features.0"]
    _, state = log.tag("unit_roles/features.0/state")[3]
    _, by_class = log.tag("unit_roles/features.0/contributions")[3]
    for split in ("train", "val"):
        measured = getattr(layer, split).contributions
        np.testing.assert_allclose(state[f"contribution_{split}"], measured.overall().mean, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(state[f"error_{split}"], measured.overall().standard_error, rtol=1e-3)
        np.testing.assert_allclose(by_class[f"contribution_{split}"], measured.by_class().mean, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(by_class[f"error_{split}"], measured.by_class().standard_error, rtol=1e-3)
        assert (state[f"effect_{split}"].astype(int) - 1).tolist() == getattr(layer.summary_effects, split).tolist()


def test_a_removed_unit_has_no_contribution(log: Log) -> None:
    training = Training(CONTRIBUTING[:1], contributions=True)
    log.write(training.report(0, 5), 1)
    log.write(training.report(1, 5, {"features.0": np.arange(1, 16)}), 2, kept={"features.0": np.arange(1, 16)})
    _, state = log.tag("unit_roles/features.0/state")[2]
    _, by_class = log.tag("unit_roles/features.0/contributions")[2]
    assert np.isnan(state["contribution_val"]).tolist() == [True] + 15 * [False]
    assert np.isnan(by_class["error_train"]).all(0).tolist() == [True] + 15 * [False]
    assert state["effect_val"][0] == 255


def test_reports_by_turning_point_log_nothing_of_contributions(log: Log) -> None:
    log.write(Training(SMALL).report(0, 5), 1)
    row, (_, state) = log.overview()[1], log.tag("unit_roles/conv1/state")[1]
    assert np.isnan([row[name] for name in ("units_help", "differing_share", "units_removable", "margin_val")]).all()
    assert not [name for name in state if name.startswith(("contribution", "error", "effect"))]
    assert not log.tag("unit_roles/conv1/contributions")


def test_pruning_keeps_order() -> None:
    assert (np.diff(prune(SMALL[0], 0.5)) > 0).all()


def test_each_picture_is_logged_once_and_units_keep_their_number(log: Log) -> None:
    training = Training(CONTRIBUTING[:1], contributions=True, images=True)
    name = CONTRIBUTING[0].name
    log.write(training.report(0, 3), 0)
    kept = np.array([3, 5, 9])
    state = log.write(training.report(1, 3, {name: kept}), 1, kept={name: kept})
    pictures = log.tag("unit_roles/thumbnails")
    assert list(pictures) == [0]
    assert pictures[0][1]["pixels"].shape == (12, 16, 16, 1)
    assert len(state.thumbnails) == 12
    _, first = log.tag(f"unit_roles/{name}/examples")[0]
    _, second = log.tag(f"unit_roles/{name}/examples")[1]
    assert np.array_equal(second["images"][..., kept], first["images"][..., [0, 1, 2]])  # the same first three units
    assert (second["images"][..., [0, 1, 2]] == 0).all()
    assert second["twins"][0, kept].tolist() == [5, 9, 3]
    assert set(first["images"].ravel()) <= set(pictures[0][1]["names"])


def test_pictures_have_a_bound(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_unitrole.tensorboard_plugin.examples.MAX_THUMBNAIL_BYTES", 5 * 256)
    log.write(Training(CONTRIBUTING[:1], contributions=True, images=True).report(0, 3), 0)
    assert log.tag("unit_roles/thumbnails")[0][1]["pixels"].shape == (5, 16, 16, 1)
