from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard_plugin.synthetic import CONTRIBUTING, Training

from lightning_unitrole.analysis.advice import misleading_layers
from lightning_unitrole.errors import DataError
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.layer import LayerReport, SplitReport
from lightning_unitrole.reports.report import FORMAT_VERSION, UnitReport
from lightning_unitrole.reports.roles import NO_ROLE, UnitRole

NAN, INF = math.nan, math.inf


def curve(
    *, ablated: list[int] | None = None, loss: list[float] | None = None, accuracy: list[float] | None = None
) -> AblationCurve:
    size = len(ablated or loss or accuracy or [])
    return AblationCurve(
        ablated=torch.tensor(ablated or list(range(size))),
        loss=torch.tensor(loss or [0.0] * size, dtype=torch.float64),
        accuracy=torch.tensor(accuracy or [0.0] * size, dtype=torch.float64),
        top5=torch.full((size,), NAN, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("loss", "turning_point"),
    [
        pytest.param([1.0, 0.5, 0.75, 2.0], 2, id="minimum"),
        pytest.param([1.0, 0.5, 0.5, 2.0], 4, id="the largest number at the minimum"),
        pytest.param([0.5, 0.75, 0.5, 2.0], 4, id="two separate minima"),
        pytest.param([0.5, 0.75, 1.0, 2.0], 0, id="nothing to gain"),
        pytest.param([1.0, 1.0, 1.0, 1.0], 7, id="flat"),
        pytest.param([NAN, 0.5, NAN, 2.0], 2, id="NaN is no minimum"),
        pytest.param([INF, 0.5, INF, NAN], 2, id="nor is infinity"),
    ],
)
def test_turning_points(loss: list[float], turning_point: int) -> None:
    ablated = [0, 2, 4, 7]
    assert curve(ablated=ablated, loss=loss).turning_point == turning_point
    assert curve(ablated=ablated, accuracy=[-value for value in loss]).turning_point_by_accuracy == turning_point


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, NAN]), min_size=1, max_size=9))
def test_turning_point_equals_a_plain_loop(loss: list[float]) -> None:
    best, turning_point = INF, 0  # where nothing is known, nothing speaks against a unit
    for ablated, value in enumerate(loss):
        if value <= best:
            best, turning_point = value, ablated
    assert curve(loss=loss).turning_point == turning_point


@pytest.mark.parametrize(
    ("ablated", "accuracy", "area"),
    [
        pytest.param([0, 1, 2], [1.0, 1.0, 1.0], 1.0, id="flat"),
        pytest.param([0, 5], [1.0, 0.0], 0.5, id="triangle"),
        pytest.param([0, 1, 5], [1.0, 0.5, 0.0], 0.35, id="uneven points"),
        pytest.param([0], [0.75], 0.75, id="one point"),
        pytest.param([0, 1, 2], [1.0, NAN, 1.0], NAN, id="NaN"),
    ],
)
def test_area(ablated: list[int], accuracy: list[float], area: float) -> None:
    assert curve(ablated=ablated, accuracy=accuracy).area == pytest.approx(area, nan_ok=True)


CLASSES, UNITS = 3, 5
ORDER = torch.tensor([[3, 1, 4, 0, 2], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])


def split(seed: int, *, ablation: bool = True) -> SplitReport:
    generator = torch.Generator().manual_seed(seed)

    def measure() -> torch.Tensor:
        return torch.rand(CLASSES, UNITS, dtype=torch.float64, generator=generator)

    entropy = measure()
    entropy[1, 2] = NAN
    whole = [0, 2, 5]
    return SplitReport(
        images=torch.tensor([7, 0, 7]),
        entropy=entropy,
        selective_rate=measure(),
        ineffectiveness=measure(),
        non_finite=torch.zeros(CLASSES, UNITS, dtype=torch.int64),
        score=measure(),
        order=ORDER,
        overall_order=ORDER[0],
        curves={
            "least_first": curve(ablated=whole, accuracy=[1.0, 0.9, 0.0]),
            "most_first": curve(ablated=whole, accuracy=[1.0, 0.25, 0.0]),
            "random": curve(ablated=whole, accuracy=[1.0, 0.5, 0.0]),
        }
        if ablation
        else {},
        class_curves=(curve(ablated=whole, loss=[1.0, 0.5, 2.0]), None, curve(ablated=whole, loss=[1.0, 0.9, 0.8]))
        if ablation
        else (),
    )


def layer(name: str = "features.conv1", *, ablation: bool = True) -> LayerReport:
    roles = [[3, 3, 1, 2, 0], [NO_ROLE] * 5, [3, 0, 1, 0, 0]]
    return LayerReport(
        name=name,
        map_size=(14, 13),
        train=split(0, ablation=ablation),
        val=split(1, ablation=ablation),
        roles=torch.tensor(roles if ablation else [], dtype=torch.uint8).view(-1, UNITS),
        summary=torch.tensor([3, 3, 1, 2, 0] if ablation else [], dtype=torch.uint8),
    )


def report(*, ablation: bool = True) -> UnitReport:
    layers = {name: layer(name, ablation=ablation) for name in ("features.conv1", "meta", "größe/2")}
    return UnitReport(
        layers=layers,
        skipped={"stem": "its maps are 3x3; a cycle needs at least 4 vertices"},
        class_names=("cat", "dog", "Fuß"),
        criterion="feature_entropy",
        epoch=4,
        global_step=1_234,
    )


def assert_same(one: UnitReport, other: UnitReport) -> None:
    def compare(first: object, second: object) -> None:
        assert type(first) is type(second)
        if isinstance(first, torch.Tensor):
            assert isinstance(second, torch.Tensor)
            assert first.dtype == second.dtype
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
        elif isinstance(first, dict):
            assert isinstance(second, dict)
            assert list(first) == list(second)
            compare(tuple(first.values()), tuple(second.values()))
        elif isinstance(first, tuple):
            assert isinstance(second, tuple)
            for pair in zip(first, second, strict=True):
                compare(*pair)
        elif hasattr(first, "__dataclass_fields__"):
            compare(vars(first), vars(second))
        else:
            assert first == second or (first != first and second != second)

    compare(one, other)


def test_comparing_reports_can_fail() -> None:
    with pytest.raises(AssertionError):
        assert_same(report(), replace(report(), epoch=5))
    changed = report()
    changed.layers["meta"].val.score[2, 1] += 1e-9
    with pytest.raises(AssertionError):
        assert_same(report(), changed)


@pytest.mark.parametrize("ablation", [True, False], ids=["with ablation", "without"])
class TestRoundTrips:
    def test_file(self, tmp_path: Path, ablation: bool) -> None:
        path = tmp_path / "report"
        report(ablation=ablation).save(path)
        assert_same(UnitReport.load(path), report(ablation=ablation))
        assert_same(UnitReport.load(str(path)), report(ablation=ablation))

    def test_file_holds_no_pickle(self, tmp_path: Path, ablation: bool) -> None:
        path = tmp_path / "report.npz"
        report(ablation=ablation).save(path)
        with np.load(path, allow_pickle=False) as archive:
            assert {archive[key].dtype.kind for key in archive.files} <= set("iufU")

    def test_state_dict_in_a_weights_only_checkpoint(self, tmp_path: Path, ablation: bool) -> None:
        path = tmp_path / "checkpoint.ckpt"
        torch.save(report(ablation=ablation).state_dict(), path)
        state = torch.load(path, weights_only=True)
        assert_same(UnitReport.from_state_dict(state), report(ablation=ablation))


def test_what_was_measured_elsewhere_is_stored_whole(tmp_path: Path) -> None:
    """Slices, transposes and expanded tensors become ordinary ones."""
    original = report()
    odd = replace(
        original.layers["meta"].val, score=torch.rand(UNITS, CLASSES).double().T, entropy=torch.ones(()).expand(3, 5)
    )
    changed = replace(original, layers={"meta": replace(original.layers["meta"], val=odd)})
    changed.save(tmp_path / "report.npz")
    assert_same(UnitReport.load(tmp_path / "report.npz"), changed)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    state = report().state_dict()
    meta = json.loads(state["meta"]) | {"format": FORMAT_VERSION + 1}
    message = (
        rf"has format {FORMAT_VERSION + 1}; this version of lightning-unitrole reads up to {FORMAT_VERSION}\. Upgrade"
    )
    with pytest.raises(DataError, match=message):
        UnitReport.from_state_dict(state | {"meta": json.dumps(meta)})
    np.savez(tmp_path / "newer.npz", meta=np.array(json.dumps(meta)))
    with pytest.raises(DataError, match=message):
        UnitReport.load(tmp_path / "newer.npz")


def _write_other_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weights=np.zeros(3))


def _write_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(_write_other_archive, "has no 'meta' entry", id="another archive"),
        pytest.param(_write_array, "is no .npz archive", id="an array"),
        pytest.param(lambda path: path.write_text("epoch,loss"), "is no .npz archive", id="text"),
        pytest.param(lambda path: path.write_bytes(b""), "is no .npz archive", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "is no .npz archive", id="cut off"),
        pytest.param(lambda path: torch.save({}, path), "has no 'meta' entry", id="a checkpoint"),
    ],
)
def test_files_that_are_no_report_are_refused(tmp_path: Path, write: object, message: str) -> None:
    path = tmp_path / "other"
    write(path)  # type: ignore[operator]
    with pytest.raises(
        DataError, match=f"other is not a unit report: it {message}; expected a file that UnitReport.save"
    ):
        UnitReport.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        UnitReport.load(tmp_path / "nowhere")


def test_gaps() -> None:
    measured = split(0)
    # Areas: 0.4 * 0.95 + 0.6 * 0.45 = 0.65 least first, 0.325 most first, 0.4 * 0.75 + 0.6 * 0.25 = 0.45 at random.
    assert measured.ranking_gap == pytest.approx(0.65 - 0.325)
    assert measured.random_gap == pytest.approx(0.45 - 0.325)
    assert layer().ranking_gap == layer().val.ranking_gap


@pytest.mark.parametrize(
    ("random", "misleads"),
    [
        pytest.param(0.5, False, id="clearly above a random order"),
        pytest.param(0.81, True, id="above it, but not clearly"),
        pytest.param(0.95, True, id="below it"),
    ],
)
def test_a_ranking_has_to_beat_a_random_order_clearly(random: float, misleads: bool) -> None:
    # Area least first 0.65; of a random order 0.2 + 0.5 * random.
    one = layer()
    curves = {**one.val.curves, "random": curve(ablated=[0, 2, 5], accuracy=[1.0, random, 0.0])}
    found = replace(report(), layers={"a": replace(one, val=replace(one.val, curves=curves))})
    assert misleading_layers(found) == (["a"] if misleads else [])


@pytest.mark.parametrize("present", [set(), {"least_first"}, {"most_first"}, {"random"}], ids=lambda names: str(names))
def test_gaps_without_curves(present: set[str]) -> None:
    measured = split(0)
    measured = replace(measured, curves={name: values for name, values in measured.curves.items() if name in present})
    assert math.isnan(measured.ranking_gap)
    assert math.isnan(measured.random_gap)


def test_role_shares_leave_out_classes_without_roles() -> None:
    assert layer().role_shares == {
        UnitRole.NEITHER: 0.4,
        UnitRole.TRAIN_ONLY: 0.2,
        UnitRole.VAL_ONLY: 0.1,
        UnitRole.BOTH: 0.3,
    }
    assert layer(ablation=False).role_shares == {}
    assert replace(layer(), roles=torch.full((3, 5), NO_ROLE, dtype=torch.uint8)).role_shares == {}


def test_table() -> None:
    measured = replace(
        layer("conv"),
        val=replace(
            split(1),
            entropy=torch.tensor([[1.0] * 5, [NAN] * 5, [2.0] * 5]).double(),
            selective_rate=torch.full((3, 5), 0.25).double(),
        ),
    )
    found = replace(report(), layers={"conv": measured}).table()
    assert found.splitlines() == [
        "layer  units    map  entropy  sel.rate  both  train   val  neither     gap",
        "-" * 74,
        "conv       5  14x13     1.50      0.25  30 %   20 %  10 %     40 %  +0.325",
    ]


def test_table_without_ablation_has_dashes() -> None:
    last = report(ablation=False).table().splitlines()[-1].split()
    assert last[0] == "größe/2"
    assert last[-5:] == ["-"] * 5


def test_table_without_layers_is_its_head() -> None:
    assert len(replace(report(), layers={}).table().splitlines()) == 2


def test_pandas() -> None:
    original = report()
    frame = original.to_pandas()
    assert len(frame) == 3 * CLASSES * UNITS
    row = frame[(frame["layer"] == "meta") & (frame["class"] == "Fuß") & (frame["unit"] == 2)].iloc[0]
    assert row["role"] == "TRAIN_ONLY"
    for side in ("train", "val"):
        measured = getattr(original.layers["meta"], side)
        for measure in ("entropy", "selective_rate", "ineffectiveness", "score"):
            assert row[f"{measure}_{side}"] == float(getattr(measured, measure)[2, 2])
    assert frame[frame["class"] == "dog"]["role"].isna().all()
    assert frame["entropy_val"].isna().sum() == 3


def test_pandas_without_ablation() -> None:
    assert report(ablation=False).to_pandas()["role"].isna().all()


def test_pandas_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"UnitReport\.to_pandas needs pandas: pip install pandas"):
        report().to_pandas()


def test_roles_are_two_bits() -> None:
    assert [role for role in UnitRole if role & 1] == [UnitRole.TRAIN_ONLY, UnitRole.BOTH]
    assert [role for role in UnitRole if role & 2] == [UnitRole.VAL_ONLY, UnitRole.BOTH]


def test_pandas_holds_contributions_where_they_were_measured() -> None:
    measured = Training(CONTRIBUTING[:1], contributions=True).report(0, 1)
    frame = measured.to_pandas()
    layer = measured.layers[CONTRIBUTING[0].name]
    row = frame[(frame["class"] == "cat") & (frame["unit"] == 5)].iloc[0]
    found = layer.val.contributions.by_class()
    assert row["contribution_val"] == float(found.mean[3, 5])
    assert row["error_val"] == float(found.standard_error[3, 5])


def test_plots_give_a_figure_and_axes() -> None:
    from matplotlib import pyplot

    measured = Training(CONTRIBUTING, contributions=True).report(0, 1)
    figure, axes = measured.plot()
    assert axes.figure is figure
    widths = [sum(bar[place].get_width() for bar in axes.containers) for place in range(len(CONTRIBUTING))]
    assert widths == pytest.approx([100] * len(CONTRIBUTING))
    assert [label.get_text() for label in axes.get_yticklabels()] == [spec.name for spec in CONTRIBUTING]
    layer = next(iter(measured.layers.values()))
    _, axes = layer.plot()
    curve = layer.val.curves["contribution"]
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert drawn["least contribution first"].get_ydata().tolist() == curve.accuracy.tolist()
    _, own = pyplot.subplots()
    figure, axes = curve.plot(own, label="mine")
    assert axes is own
    assert figure is own.figure
    assert axes.get_legend().get_texts()[0].get_text() == "mine"
    pyplot.close("all")
    assert report(ablation=False).layers["meta"].plot()[1] is not None  # without curves there are shares
    pyplot.close("all")


def test_everything_is_short_in_a_console_and_a_table_in_a_notebook() -> None:
    measured = Training(CONTRIBUTING, contributions=True).report(0, 1)
    layer = next(iter(measured.layers.values()))
    parts = (measured, layer, layer.val, layer.val.contributions, layer.effects, layer.val.curves["random"])
    assert all(len(repr(part)) < 120 for part in parts)
    shown = measured._repr_html_()
    assert shown.count("<tr>") == 1 + len(CONTRIBUTING)
    assert "<td>features.0</td>" in shown
    harmful = replace(layer, name="<b>")
    assert "<b>" not in replace(measured, layers={"<b>": harmful})._repr_html_()


def test_what_can_go_and_how_wide_to_build() -> None:
    measured = Training(CONTRIBUTING, contributions=True).report(5, 6)
    widths = measured.suggest_widths()
    for name, layer in measured.layers.items():
        assert torch.equal(measured.removable(name), layer.removable)
        assert widths[name] == max(1, layer.num_units - len(layer.removable))
    assert any(len(layer.removable) for layer in measured.layers.values())
    with pytest.raises(DataError, match=r"There is no layer 'conv9' in this report; there are: features\.0, "):
        measured.removable("conv9")
