"""Reports of every format in files and checkpoints, whole and damaged."""

from __future__ import annotations

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import REPORTS, exact_digits, exact_vgg

from lightning_unitrole import UnitReport, UnitRoleMonitor, analyze
from lightning_unitrole.errors import DataError
from lightning_unitrole.reports import storage
from lightning_unitrole.reports.report import FORMAT_VERSION

OLD = REPORTS / "vgg_taylor.npz"
"""Written in format 1."""


@pytest.fixture(scope="module")
def report() -> UnitReport:
    """With everything that an analysis can measure."""
    return analyze(
        exact_vgg(),
        exact_digits(300),
        exact_digits(300, start=1000),
        layers=["0", "5"],
        images_per_class=6,
        curve_images=2,
        ablation_points=8,
        effects="removal",
        class_curves=True,
        backend="torch",
    )


def same(one: UnitReport, other: UnitReport) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left["meta"] == right["meta"]
    assert left["arrays"].keys() == right["arrays"].keys()
    for key, values in left["arrays"].items():
        assert values.dtype == right["arrays"][key].dtype, key
        torch.testing.assert_close(right["arrays"][key], values, rtol=0, atol=0, equal_nan=True, msg=key)


def test_everything_that_was_measured_comes_back(report: UnitReport, tmp_path: Path) -> None:
    keys = {key.partition("/")[2] for key in report.state_dict()["arrays"]}
    for part in ("train/contributions/sums", "val/removal/squares", "effects/differs", "summary_effects/val"):
        assert part in keys
    for part in ("agreement", "prediction", "check/random_loss", "val/rank_agreement", "val/curves/random_1/loss"):
        assert part in keys
    report.save(tmp_path / "report.npz")
    loaded = UnitReport.load(tmp_path / "report.npz")
    same(loaded, report)
    assert loaded.role_definition == "contribution"
    for name, layer in report.layers.items():
        again = loaded.layers[name]
        assert again.differing_share == layer.differing_share
        assert again.removable.tolist() == layer.removable.tolist()
        assert again.check is not None
        assert layer.check is not None
        assert again.check.removable == layer.check.removable
        assert type(again.check.images) is int
        assert type(again.check.accuracy) is float
    torch.save(report.state_dict(), tmp_path / "state.pt")
    same(UnitReport.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)), report)


def test_a_report_of_the_first_format_has_no_more_than_it_knew(tmp_path: Path) -> None:
    with np.load(OLD) as stored:
        assert json.loads(str(stored["meta"]))["format"] == 1
    old = UnitReport.load(OLD)
    assert old.role_definition == "turning_point"
    for layer in old.layers.values():
        assert layer.effects is None
        assert layer.check is None
        assert layer.agreement != layer.agreement  # not measured
        assert layer.removable.tolist() == []
        assert layer.val.contributions is None
    old.save(tmp_path / "again.npz")
    same(UnitReport.load(tmp_path / "again.npz"), old)
    with np.load(tmp_path / "again.npz") as stored:
        assert json.loads(str(stored["meta"]))["format"] == FORMAT_VERSION == 2


def test_a_file_that_is_cut_off_is_refused(report: UnitReport, tmp_path: Path) -> None:
    report.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "part.npz"
    for size in [0, 1, 3, 30, *range(100, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a unit report"):
            UnitReport.load(path)


def test_a_file_with_wrong_bytes_is_refused_or_says_the_same(report: UnitReport, tmp_path: Path) -> None:
    report.save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    path, draw, said = tmp_path / "wrong.npz", random.Random(0), list[str]()
    for _ in range(60):
        wrong = bytearray(whole)
        for _ in range(3):
            wrong[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(wrong)
        try:
            same(UnitReport.load(path), report)
        except DataError as error:
            said.append(str(error))
    assert len(said) > 50
    assert all("unit report" in message for message in said)


def rewritten(path: Path, change: Any) -> bytes:
    """An archive whose arrays and description were changed by a function."""
    with np.load(path) as stored:
        arrays = {key: stored[key] for key in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    change(arrays, meta)
    file = io.BytesIO()
    np.savez(file, meta=np.array(json.dumps(meta)), **arrays)
    return file.getvalue()


def drop(key: str) -> Any:
    return lambda arrays, meta: arrays.pop(key)


def put(key: str, value: Any) -> Any:
    return lambda arrays, meta: arrays.__setitem__(key, value)


def describe(**changes: Any) -> Any:
    return lambda arrays, meta: meta.update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(drop("0/val/order"), "KeyError: 'order'", id="an array is missing"),
        pytest.param(drop("1/train/contributions/sums"), "KeyError: 'sums'", id="a part of the contributions"),
        pytest.param(drop("0/effects/val"), "Effects.*missing", id="a part of the effects"),
        pytest.param(drop("0/check/images"), "KeyError: 'images'", id="a part of the check"),
        pytest.param(drop("0/val/curves/random/loss"), "KeyError: 'random/loss'", id="a part of a curve"),
        pytest.param(put("0/val/order", np.zeros((2, 2), np.int64)), "has val.order of another size", id="size"),
        pytest.param(put("1/roles", np.zeros((10, 3), np.uint8)), "'5' has roles of another size", id="roles"),
        pytest.param(put("0/val/score", np.zeros(())), "another size|damaged", id="a number"),
        pytest.param(put("0/val/entropy", np.zeros(3)), "damaged", id="a vector"),
        pytest.param(describe(layers=[{"name": "0"}]), "KeyError: 'map_size'", id="layer without size"),
        pytest.param(describe(layers=3), "TypeError", id="no list of layers"),
        pytest.param(describe(class_names=["a"]), "another size", id="too few class names"),
        pytest.param(describe(epoch="soon"), "ValueError", id="an epoch that is no number"),
        pytest.param(describe(format="x"), "ValueError", id="a format that is no number"),
        pytest.param(describe(format=3), "has format 3; this version of .* reads up to 2", id="newer"),
    ],
)
def test_a_report_in_which_something_is_wrong_is_refused(
    report: UnitReport, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "report.npz"
    report.save(path)
    path.write_bytes(rewritten(path, change))
    with pytest.raises(DataError, match=message):
        UnitReport.load(path)


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "report.npz"
    np.savez(path, meta=np.array("{}"), trap=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="damaged"):
        UnitReport.load(path)
    assert not (tmp_path / "sprung").exists()


def test_an_archive_that_unpacks_to_too_much_is_refused(
    report: UnitReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report.save(tmp_path / "report.npz")
    monkeypatch.setattr(storage, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"unpacks to .* GiB"):
        UnitReport.load(tmp_path / "report.npz")


def test_a_disk_that_is_full_leaves_the_report_of_before(
    report: UnitReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.npz"
    report.save(path)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(storage.np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        report.save(path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["report.npz"]


def test_others_may_read_what_is_written(report: UnitReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.npz")
    (tmp_path / "usual").write_text("")
    assert (tmp_path / "report.npz").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_the_state_of_something_else_is_refused() -> None:
    for state in ({}, {"meta": "{", "arrays": {}}, {"meta": "{}", "arrays": 3}, {"meta": "3", "arrays": {}}):
        with pytest.raises(DataError, match="unit report"):
            UnitReport.from_state_dict(state)


class TestStatesOfTheMonitor:
    def test_a_state_holds_the_latest_roles_alone(self, report: UnitReport) -> None:
        watched = UnitRoleMonitor()
        assert watched.state_dict() == {"version": 2, "roles": {}}
        roles = {name: layer.roles for name, layer in report.layers.items()}
        watched.load_state_dict({"version": 2, "roles": roles})
        state = watched.state_dict()
        assert state["version"] == 2
        assert all(torch.equal(state["roles"][name], values) for name, values in roles.items())
        assert watched.report is None
        assert watched.history == []

    def test_of_the_first_version_the_roles_of_the_last_report_are_taken(self) -> None:
        with np.load(OLD) as stored:
            arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "meta"}
            state = {"meta": str(stored["meta"]), "arrays": arrays}
        earlier = {**state, "arrays": {**arrays, "0/roles": torch.zeros_like(arrays["0/roles"])}}
        watched = UnitRoleMonitor()
        watched.load_state_dict({"version": 1, "reports": [earlier, state]})
        found, expected = watched.state_dict()["roles"], UnitReport.load(OLD).layers
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], layer.roles) for name, layer in expected.items())
        watched.load_state_dict({"version": 1, "reports": []})
        assert watched.state_dict()["roles"] == {}
