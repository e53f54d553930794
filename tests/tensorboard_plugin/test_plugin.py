"""The server side, inside TensorBoard's own application but without a process of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tensorboard.backend import application
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard_plugin.conftest import EPOCHS, MARKUP, RUNS
from werkzeug.test import Client, TestResponse

from lightning_unitrole.reports.verdicts import ranking_verdict
from lightning_unitrole.reports.vocabulary import NO_ROLE, REMOVED, ROLES
from lightning_unitrole.tensorboard_plugin import plugin as plugin_module
from lightning_unitrole.tensorboard_plugin import reading
from lightning_unitrole.tensorboard_plugin.contents import STATE_FIELDS, state_part
from lightning_unitrole.tensorboard_plugin.index import LayerIndex
from lightning_unitrole.tensorboard_plugin.packing import Array, deflate, pack, unpack
from lightning_unitrole.tensorboard_plugin.plugin import STATIC, STATIC_FILES, UnitRolesPlugin
from lightning_unitrole.tensorboard_plugin.query import Listing
from lightning_unitrole.tensorboard_plugin.reading import Shelf, Table
from lightning_unitrole.tensorboard_plugin.schema import OVERVIEW_COLUMNS
from lightning_unitrole.tensorboard_plugin.verdicts import curve_rankings, overview_verdicts

PREFIX = "/data/plugin/unit_roles"


def provider(directory: Path) -> MultiplexerDataProvider:
    events = EventMultiplexer(tensor_size_guidance={"unit_roles": 0})
    events.AddRunsFromDirectory(str(directory))
    events.Reload()
    return MultiplexerDataProvider(events, str(directory))


@pytest.fixture(scope="module")
def client(logs: Path) -> Client:
    data = provider(logs)
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=data))
    return Client(application.TensorBoardWSGI([plugin], data_provider=data))


def read(client: Client, path: str, **query: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    response = client.get(f"{PREFIX}/{path}", query_string=query)
    assert response.status_code == 200, response.text
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return unpack(response.data)


def refused(client: Client, path: str, **query: Any) -> TestResponse:
    response = client.get(f"{PREFIX}/{path}", query_string=query)
    assert response.status_code in (400, 404), response.text
    assert response.content_type == "application/json"
    return response


def test_the_tab_is_listed_as_active(client: Client) -> None:
    listed = client.get("/data/plugins_listing").json["unit_roles"]
    assert listed["enabled"]
    assert listed["tab_name"] == "Unit roles"
    assert listed["loading_mechanism"]["module_path"].endswith("/unit_roles/index.js")


def test_runs_with_their_layers_and_classes(client: Client) -> None:
    runs = {run["name"]: run for run in client.get(f"{PREFIX}/runs").json["runs"]}
    assert len(runs) == RUNS
    assert runs["baseline"]["last_step"] == 100 * EPOCHS - 1
    assert [layer["units"] for layer in runs["baseline"]["layers"]] == [16, 48]
    assert runs["baseline"]["layers"][0]["parts"] == ["state", "classes", "curves"]
    assert runs["without_ablation"]["layers"][0]["parts"] == ["state"]
    assert MARKUP in next(run for name, run in runs.items() if name.startswith("zz"))["class_names"]


def test_every_step_of_a_layer(client: Client) -> None:
    info, layer = read(client, "layer", run="baseline", layer=1, fields="roles,entropy_val")
    assert info["units"] == 48
    assert layer["steps"].tolist() == [100 * (epoch + 1) - 1 for epoch in range(EPOCHS)]
    assert layer["epochs"].tolist() == list(range(EPOCHS))
    assert layer["roles"].shape == layer["entropy_val"].shape == (EPOCHS, 48)


def test_one_unit_and_one_step_of_a_layer_are_cut_out_of_all(client: Client) -> None:
    query = {"run": "baseline", "layer": 1, "fields": "roles,entropy_val"}
    _, layer = read(client, "layer", **query)
    _, unit = read(client, "layer", **query, unit=17)
    np.testing.assert_array_equal(unit["steps"], layer["steps"])
    np.testing.assert_array_equal(unit["entropy_val"], layer["entropy_val"][:, 17:18])
    for until, at in ((0, 0), (99, 0), (100, 0), (199, 1), (10**9, EPOCHS - 1)):
        _, row = read(client, "layer", **query, until=until)
        assert row["steps"].tolist() == [layer["steps"][at]]
        np.testing.assert_array_equal(row["roles"], layer["roles"][at : at + 1])
    assert client.get(f"{PREFIX}/layer", query_string={**query, "unit": 48}).status_code == 400
    assert client.get(f"{PREFIX}/layer", query_string={**query, "until": "x"}).status_code == 400


CONTRIBUTIONS = "contribution_train,contribution_val,error_train,error_val"


def test_a_part_of_a_state_is_the_same_as_the_whole(logs: Path) -> None:
    """Whatever was read before: a part is not inflated to its end, and the whole stays on the shelf."""
    query = {"run": "contribution", "layer": 0}
    fresh = (Client(application.TensorBoardWSGI([plugin], data_provider=data)) for plugin, data in plugins(logs, 2))
    part, whole = next(fresh), next(fresh)
    _, every = read(whole, "layer", **query, fields=",".join(STATE_FIELDS))
    for client in (part, whole):
        for fields in ("roles", "roles,entropy_val,entropy_train", "effect_val", "roles,rank"):
            _, found = read(client, "layer", **query, fields=fields)
            assert list(found) == ["steps", "epochs", *fields.split(",")]
            for name, values in found.items():
                np.testing.assert_array_equal(values, every[name])


@pytest.mark.parametrize(("at", "places"), [("0", [0]), ("199", [0, 1]), ("99,250", [0, 1]), ("9000", [1, 2])])
def test_contributions_beside_the_roles_are_those_of_the_steps_asked_for(
    logs: Path, at: str, places: list[int]
) -> None:
    query = {"run": "contribution", "layer": 0, "fields": "roles", "beside": CONTRIBUTIONS, "at": at}
    for plugin, data in plugins(logs, 2):
        client = Client(application.TensorBoardWSGI([plugin], data_provider=data))
        for _ in range(2):
            _, found = read(client, "layer", **query)
            _, every = read(client, "layer", run="contribution", layer=0, fields=CONTRIBUTIONS)  # on the shelf from now
            assert found["beside"].tolist() == places
            for name in CONTRIBUTIONS.split(","):
                np.testing.assert_array_equal(found[f"beside_{name}"], every[name][places])
    for wrong in ({"beside": "nothing"}, {"at": "x"}, {"at": "-1"}, {"at": ",".join("1" * 9)}):
        assert client.get(f"{PREFIX}/layer", query_string={**query, **wrong}).status_code == 400


def test_an_analysis_that_is_damaged_behind_its_roles_is_unknown_beside_them() -> None:
    fields = {name: np.ones(2000, kind) for name, kind in STATE_FIELDS.items()}
    noise = np.random.default_rng(0).integers(0, 256, (len(fields), 2000))
    arrays = {name: noise[row].astype(values.dtype) for row, (name, values) in enumerate(fields.items())}
    sound = deflate(pack({"format": 1, "epoch": 0, "units": 2000}, arrays))
    broken = sound[: len(sound) // 2] + bytes(len(sound) // 2)
    content = json.dumps({**INDEX, "layers": [{"name": "conv", "units": 2000, "map_size": [4, 4]}]}).encode()
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=Steps(content, [sound, broken, sound])))
    client = Client(plugin.get_plugin_apps()["/layer"])
    query = {"run": "run", "layer": 0, "fields": "roles", "beside": "rank,contribution_val", "at": "1,2"}
    _, found = unpack(client.get("/", query_string=query).data)
    assert found["steps"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found["beside_contribution_val"][[0, 2]], [arrays["contribution_val"]] * 2)
    assert np.isnan(found["beside_contribution_val"][1]).all()
    assert (found["beside_rank"][1] == 65535).all()
    _, whole = unpack(client.get("/", query_string={"run": "run", "layer": 0, "fields": "roles,effect_val"}).data)
    assert whole["steps"].tolist() == [0, 2]


def test_tensorboard_is_asked_once_for_the_runs_of_a_page(logs: Path) -> None:
    ((plugin, data),) = plugins(logs)
    asked = []
    listed = data.list_tensors
    data.list_tensors = lambda *args, **options: asked.append(1) or listed(*args, **options)
    client = Client(application.TensorBoardWSGI([plugin], data_provider=data))
    assert client.get(f"{PREFIX}/runs").status_code == 200
    for path in ("overview", "layer", "layer", "curves"):
        read(client, path, run="baseline", **({} if path == "overview" else {"layer": 0}))
    assert len(asked) == 1
    assert client.get(f"{PREFIX}/runs").status_code == 200
    assert len(asked) == 2


def test_a_list_of_runs_holds_for_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((100.0, 104.0, 106.0, 107.0, 107.0, 107.0))
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    answers = iter([{"first": {}}, {"second": {}}, {"third": {}}, {"fourth": {}}])
    listing = Listing(seconds=5)
    found = [next(iter(listing.runs("", lambda: next(answers)))) for _ in range(4)]
    assert found == ["first", "first", "second", "second"]
    assert list(listing.runs("other", lambda: next(answers))) == ["third"]
    listing.forget("other")
    assert list(listing.runs("other", lambda: next(answers))) == ["fourth"]


def plugins(logs: Path, count: int = 1) -> Iterator[tuple[UnitRolesPlugin, MultiplexerDataProvider]]:
    """New ones, which have read nothing."""
    for _ in range(count):
        data = provider(logs)
        yield UnitRolesPlugin(SimpleNamespace(data_provider=data)), data


def test_tables_are_read_once_as_long_as_there_is_room() -> None:
    def table(size: int) -> Table:
        read_now.append(size)
        return Table({}, {"roles": np.zeros((1, size), np.uint8)}, [])

    read_now: list[int] = []
    shelf = Shelf(num_bytes=100)
    for key, size in (("a", 40), ("b", 50), ("a", 40), ("c", 30), ("a", 40), ("b", 50), ("d", 500), ("d", 500)):
        assert shelf.table(key, lambda size=size: table(size)).num_bytes == size
    # "b" made room for "c", as "a" had been asked for since; then "c" for "b", and all for what fills the shelf alone.
    assert read_now == [40, 50, 30, 50, 500]


def test_the_overview_has_a_row_for_each_layer(client: Client) -> None:
    info, overview = read(client, "overview", run="pruned")
    assert overview["table"].shape == (EPOCHS, 2, len(info["columns"]))
    assert overview["table"][-1, :, info["columns"].index("present")].tolist() == [12, 36]


def test_the_vocabulary_is_the_packages_own(client: Client) -> None:
    sent = client.get(f"{PREFIX}/vocabulary").json["roles"]
    assert [(role["code"], role["label"], role["meaning"]) for role in sent] == [
        (role.code, role.label, role.meaning) for role in ROLES
    ]


def test_no_script_or_style_repeats_the_vocabulary() -> None:
    for name in STATIC_FILES:
        text = (STATIC / name).read_text(encoding="utf-8")
        for role in ROLES:
            found = [role.light, role.dark, f"'{role.label}'", f"{role.code}: '", role.meaning]
            assert not [copy for copy in found if copy.lower() in text.lower() and copy != "#ffffff"], (name, role.name)


def test_overview_and_curves_agree_on_the_ranking_with_the_package(client: Client) -> None:
    info, overview = read(client, "overview", run="baseline")
    columns = info["columns"]
    gap, random = (overview["table"][-1, 1, columns.index(name)] for name in ("ranking_gap", "random_gap"))
    expected = ranking_verdict(float(gap), float(random), "feature_entropy")
    assert info["verdicts"][overview["verdict"][-1, 1]]["text"] == expected
    curves, _ = read(client, "curves", run="baseline", layer=1)
    (ranking,) = [each for each in curves["rankings"] if (each["at"], each["split"]) == (EPOCHS - 1, "val")]
    assert ranking["text"] == expected
    assert ranking["gap"] == pytest.approx(gap, abs=2e-3)
    assert ranking["over_random"] == pytest.approx(gap - random, abs=2e-3)
    by_class, _ = read(client, "curves", run="baseline", layer=1, **{"class": 0})
    assert {each["text"] for each in by_class["rankings"]} == {"The order by feature entropy was not put to the test."}


def test_an_order_is_a_warning_only_where_roles_follow_from_it() -> None:
    columns = dict.fromkeys(OVERVIEW_COLUMNS, np.nan)
    upside_down = columns | {"ranking_gap": -0.4, "random_gap": 0.1}
    sound = columns | {"ranking_gap": 0.4, "random_gap": 0.1}
    rows = [upside_down, upside_down | {"units_help": 3}, sound, upside_down]
    table = np.array([list(row.values()) for row in rows], np.float32)[None]
    verdicts, places = overview_verdicts(table, "taylor")
    assert [verdicts[place]["warn"] for place in places[0]] == [True, False, False, True]
    words = [verdicts[place]["word"] for place in places[0]]
    assert words == ["upside down", "upside down", "better than random", "upside down"]
    assert len(verdicts) == 3
    assert verdicts[0]["text"] == ranking_verdict(-0.4, 0.1, "taylor")
    curves = [{"at": 0, "split": "val", "order": order, "points": 2} for order in ("least_first", "most_first")]
    for by_order in (True, False):
        found = curve_rankings(curves, np.array([0, 4, 0, 4]), np.array([0.9, 0.1, 0.9, 0.5]), "taylor", [by_order])
        assert [(each["word"], each["warn"]) for each in found] == [("upside down", by_order)]


def test_classes_and_units_are_cuts_of_the_same_roles(client: Client) -> None:
    by_class = [read(client, "classes", run="pruned", layer=0, **{"class": k})[1]["roles"] for k in range(10)]
    by_unit = [read(client, "unit", run="pruned", layer=0, unit=u)[1]["roles"] for u in range(16)]
    np.testing.assert_array_equal(np.stack(by_class, 1), np.stack(by_unit, 2))
    state = read(client, "layer", run="pruned", layer=0, fields="roles")[1]["roles"]
    np.testing.assert_array_equal(state == REMOVED, by_class[0] == REMOVED)
    assert (by_class[0] != NO_ROLE).all()


def test_contributions_of_one_unit_at_one_step(client: Client) -> None:
    query = {"run": "contribution", "layer": 0}
    _, found = read(client, "contributions", **query, unit=3, step=299)
    assert found["steps"].tolist() == [299]
    assert found["contribution_val"].shape == found["error_train"].shape == (1, 10)
    assert found["classes"].tolist() == [list(range(10))]
    state = read(client, "layer", **query, fields="contribution_val,effect_val")[1]
    assert state["contribution_val"][-1, 3] == pytest.approx(found["contribution_val"].mean(), rel=5e-3)
    assert set(np.unique(state["effect_val"])) <= {0, 1, 2}
    assert read(client, "contributions", **query, unit=3, step=298)[1]["contribution_val"].size == 0


def test_what_earlier_versions_did_not_log_is_not_known(client: Client) -> None:
    state = read(client, "layer", run="baseline", layer=0, fields="contribution_val,error_val,effect_val")[1]
    assert np.isnan(state["contribution_val"]).all()
    assert (state["effect_val"] == 255).all()
    assert read(client, "contributions", run="baseline", layer=0, unit=0, step=99)[1]["error_val"].size == 0


def test_random_orders_count_together(client: Client) -> None:
    info, overview = read(client, "overview", run="contribution")
    gap, random = (overview["table"][-1, 0, info["columns"].index(name)] for name in ("ranking_gap", "random_gap"))
    curves, _ = read(client, "curves", run="contribution", layer=0)
    orders = {(curve["split"], curve["order"]) for curve in curves["curves"]}
    assert {("val", "contribution"), ("val", "random"), ("val", "random_1")} <= orders
    assert curves["by_class"] == [False, False, False]
    (ranking,) = [each for each in curves["rankings"] if each["at"] == 2]
    assert ranking["over_random"] == pytest.approx(gap - random, abs=2e-3)


def test_curves_of_all_classes_and_of_one(client: Client) -> None:
    info, points = read(client, "curves", run="baseline", layer=0)
    assert {(curve["split"], curve["order"]) for curve in info["curves"]} == {
        (split, order) for split in ("train", "val") for order in ("least_first", "most_first", "random")
    }
    assert len(info["curves"]) == 6 * EPOCHS
    assert sum(curve["points"] for curve in info["curves"]) == len(points["loss"])
    info, points = read(client, "curves", run="baseline", layer=0, **{"class": 3})
    assert {curve["class"] for curve in info["curves"]} == {3}
    assert len(info["curves"]) == 2 * EPOCHS


@pytest.mark.parametrize(
    ("path", "query", "message"),
    [
        ("layer", {}, "Expected one parameter 'run', got 0"),
        ("layer", {"run": "nothing"}, "no such run"),
        ("layer", {"run": ["baseline", "pruned"]}, "Expected one parameter 'run', got 2"),
        ("layer", {"run": "x" * 5000}, "too long"),
        ("layer", {"run": "baseline"}, "parameter 'layer'"),
        ("layer", {"run": "baseline", "layer": "2"}, "whole number from 0 to 1"),
        ("layer", {"run": "baseline", "layer": "-1"}, "whole number"),
        ("layer", {"run": "baseline", "layer": "1.5"}, "whole number"),
        ("layer", {"run": "baseline", "layer": "²"}, "whole number"),
        ("layer", {"run": "baseline", "layer": "0", "fields": "roles,__class__"}, "Unknown fields"),
        ("unit", {"run": "baseline", "layer": "0", "unit": "16"}, "whole number from 0 to 15"),
        ("classes", {"run": "baseline", "layer": "0", "class": "10"}, "whole number from 0 to 9"),
        ("curves", {"run": "baseline", "layer": "0", "class": "some"}, "whole number"),
        ("overview", {"run": "../baseline"}, "no such run"),
    ],
)
def test_parameters_are_checked(client: Client, path: str, query: dict[str, Any], message: str) -> None:
    assert message in refused(client, path, **query).json["error"]


def test_only_reading_is_answered(client: Client) -> None:
    assert client.post(f"{PREFIX}/runs").status_code == 405


def test_a_layer_without_ablation_has_empty_parts(client: Client) -> None:
    assert read(client, "classes", run="without_ablation", layer=0, **{"class": 0})[1]["roles"].size == 0
    assert read(client, "curves", run="without_ablation", layer=0)[0]["curves"] == []


def test_only_the_files_of_the_list_are_served(client: Client) -> None:
    found = {file.relative_to(STATIC).as_posix() for file in STATIC.rglob("*") if file.is_file()}
    assert found == set(STATIC_FILES)
    for name, kind in STATIC_FILES.items():
        response = client.get(f"{PREFIX}/{name}")
        assert response.status_code == 200
        assert response.mimetype == kind
    for path in (
        "../plugin.py",
        "..%2fplugin.py",
        "plugin.py",
        "views/",
        "views/../index.js.map",
        "static/index.js",
        "",
    ):
        assert client.get(f"{PREFIX}/{path}").status_code == 404, path


def test_the_page_asks_nobody_else_and_writes_no_markup() -> None:
    for name in STATIC_FILES:
        text = (STATIC / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), (
            name
        )


def test_no_line_of_the_tab_is_longer_than_the_house_allows() -> None:
    """The formatter breaks code, but not strings and style sheets."""
    for name in STATIC_FILES:
        lines = (STATIC / name).read_text(encoding="utf-8").splitlines()
        assert max(map(len, lines)) <= 120, name


def test_a_layer_that_began_with_another_number_of_units_is_left_out(client: Client, logs: Path) -> None:
    request = SimpleNamespace(environ={}, args=SimpleNamespace(getlist=lambda name: ["baseline"]))
    query = plugin_module.Query(provider(logs), request)
    layer = LayerIndex("features.0", 17, (28, 28))
    series = query.read("unit_roles/features.0/state", state_part(layer, ["roles"]))
    assert series.rows == []
    assert "did not begin with 17 units" in series.skipped[0]


INDEX = {"format": 1, "classes": [], "class_names": [], "num_classes": 0, "criterion": "feature_entropy"}


class Broken:
    """A data provider with a run whose data somebody else has written, or nobody can read."""

    def __init__(self, content: bytes, tensor: bytes = b"") -> None:
        self.content, self.tensor = content, tensor

    def list_tensors(self, *_: Any, **__: Any) -> Any:
        series = SimpleNamespace(plugin_content=self.content, max_step=1, max_wall_time=1.0)
        return {"run": {"unit_roles/overview": series}}

    def read_tensors(self, *_: Any, **__: Any) -> Any:
        datum = SimpleNamespace(step=1, wall_time=1.0, numpy=np.frombuffer(self.tensor, np.uint8))
        return {"run": {"unit_roles/overview": [datum]}}


class Steps(Broken):
    """The same with several containers of one layer's state."""

    def __init__(self, content: bytes, containers: list[bytes]) -> None:
        super().__init__(content)
        self.containers = containers

    def list_tensors(self, *_: Any, **__: Any) -> Any:
        series = SimpleNamespace(plugin_content=self.content, max_step=9, max_wall_time=1.0)
        return {"run": {"unit_roles/overview": series, "unit_roles/conv/state": series}}

    def read_tensors(self, *_: Any, **__: Any) -> Any:
        found = [
            SimpleNamespace(step=step, wall_time=1.0, numpy=np.frombuffer(container, np.uint8))
            for step, container in enumerate(self.containers)
        ]
        return {"run": {"unit_roles/conv/state": found}}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}', b"\xff"])
def test_a_run_with_unreadable_metadata_is_passed_over(content: bytes) -> None:
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=Broken(content)))
    client = Client(plugin.get_plugin_apps()["/runs"])
    answer = client.get("/").json
    assert answer["runs"] == []
    (skipped,) = answer["skipped"]
    assert skipped["run"] == "run"
    assert skipped["reason"].startswith("The run cannot be shown: ")


def test_a_run_of_a_newer_version_says_what_to_do() -> None:
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=Broken(b'{"format": 99}')))
    (skipped,) = Client(plugin.get_plugin_apps()["/runs"]).get("/").json["skipped"]
    assert skipped["reason"] == (
        "The run cannot be shown: a newer version of lightning_unitrole wrote format 99, and this one reads formats up "
        "to 1; update the package to see what it wrote."
    )
    response = Client(plugin.get_plugin_apps()["/overview"]).get("/?run=run")
    assert response.status_code == 404
    assert "format 99" in response.json["error"]


def test_a_step_of_a_newer_version_is_passed_over_and_told() -> None:
    content = json.dumps({**INDEX, "layers": [{"name": "conv", "units": 2, "map_size": [4, 4]}]}).encode()
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=Broken(content, deflate(pack({"format": 2}, {})))))
    info, arrays = unpack(Client(plugin.get_plugin_apps()["/overview"]).get("/?run=run").data)
    assert arrays["steps"].size == 0
    assert "1 of 1 analysis cannot be shown: a newer version of lightning_unitrole wrote format 2" in info["skipped"][0]


def test_a_layer_that_cannot_be_shown_takes_no_other_with_it() -> None:
    good = {"name": "conv", "units": 2, "map_size": [4, 4]}
    layers = [{**good, "units": -1}, good, good, {**good, "name": 7}, {**good, "name": "b", "map_size": [4]}, None]
    content = json.dumps({**INDEX, "layers": layers}).encode()
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=Broken(content)))
    answer = Client(plugin.get_plugin_apps()["/runs"]).get("/").json
    assert [layer["name"] for layer in answer["runs"][0]["layers"]] == ["conv"]
    assert len(answer["skipped"]) == 5


def test_a_long_answer_is_thinned_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LayerIndex("conv", 100, (4, 4))
    info = {"format": 1, "epoch": 0, "units": 100}
    container = np.frombuffer(deflate(pack(info, {"roles": np.zeros(100, np.uint8)})), np.uint8)
    events = [SimpleNamespace(step=step, numpy=container) for step in range(50)]
    monkeypatch.setattr(reading, "MAX_ANSWER_BYTES", 16 * state_part(layer, ["roles"]).weight)
    series = reading.read_series(events, state_part(layer, ["roles"]))
    assert [row.step for row in series.rows] == list(range(1, 50, 4))
    assert series.skipped == ["Only one analysis in 4 is shown: all of them are too many for one view."]
    monkeypatch.setattr(reading, "MAX_INFLATED_BYTES", 10 * 4096)
    series = reading.read_series(events, state_part(layer, ["roles"]))
    assert [row.step for row in series.rows] == list(range(40, 50))
    assert series.skipped == ["40 of 50 analyses cannot be shown: there is too much data for one view."]


def test_a_step_that_cannot_be_read_is_passed_over() -> None:
    content = json.dumps({**INDEX, "layers": [{"name": "conv", "units": 2, "map_size": [4, 4]}]}).encode()
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=Broken(content, b"not a container")))
    client = Client(plugin.get_plugin_apps()["/overview"])
    info, arrays = unpack(client.get("/?run=run").data)
    assert arrays["steps"].size == 0
    assert info["skipped"] == ["1 of 1 analysis cannot be shown: the bytes are damaged."]


def test_without_a_data_provider_there_are_no_runs() -> None:
    plugin = UnitRolesPlugin(SimpleNamespace(data_provider=None))
    assert Client(plugin.get_plugin_apps()["/runs"]).get("/").json["runs"] == []
