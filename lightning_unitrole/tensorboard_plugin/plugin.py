"""The server side of the "Unit roles" tab: its own files, and the logged containers cut to what a view needs.

Nothing here imports torch: TensorBoard runs where no training does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.data import provider
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from lightning_unitrole.reports.vocabulary import NO_ROLE, REMOVED, vocabulary
from lightning_unitrole.tensorboard_plugin.packing import Array, inflate, pack, unpack
from lightning_unitrole.tensorboard_plugin.schema import (
    FORMAT_VERSION,
    MEASURES,
    OVERVIEW_COLUMNS,
    OVERVIEW_TAG,
    PLUGIN_NAME,
    TAB_NAME,
    layer_tag,
)
from lightning_unitrole.tensorboard_plugin.verdicts import curve_rankings, overview_verdicts

STATIC = Path(__file__).parent / "static"
STATIC_FILES = {
    "app.js": "text/javascript",
    "api.js": "text/javascript",
    "charts.js": "text/javascript",
    "derive.js": "text/javascript",
    "dom.js": "text/javascript",
    "frame.js": "text/javascript",
    "host.js": "text/javascript",
    "index.js": "text/javascript",
    "palette.js": "text/javascript",
    "raster.js": "text/javascript",
    "state.js": "text/javascript",
    "style.css": "text/css",
    "unpack.js": "text/javascript",
    "vocabulary.js": "text/javascript",
    "views/ablation.js": "text/javascript",
    "views/entropy.js": "text/javascript",
    "views/overview.js": "text/javascript",
    "views/parts.js": "text/javascript",
    "views/runs.js": "text/javascript",
    "views/transitions.js": "text/javascript",
    "views/unit.js": "text/javascript",
    "views/units.js": "text/javascript",
}
"""Every file that is served. A request for another one finds nothing, whatever lies in the directory."""

ALL_STEPS = 1_000_000
STATE_FIELDS = ("roles", "rank", *MEASURES)


class RequestError(Exception):
    """A request that cannot be answered: a status and a sentence for the reader."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Datum:
    """One logged container."""

    step: int
    wall_time: float
    info: Mapping[str, Any]
    arrays: Mapping[str, Array]


class UnitRolesPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """The tab "Unit roles". Reads through TensorBoard's data provider alone."""

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider

    def get_plugin_apps(self) -> dict[str, Any]:
        """Routes of the tab, below ``data/plugin/unit_roles``."""
        routes = {f"/{name}": self._static_app(name) for name in STATIC_FILES}
        for name in ("vocabulary", "runs", "overview", "layer", "classes", "unit", "curves"):
            routes[f"/{name}"] = self._data_app(getattr(self, f"_{name}"))
        return routes

    def is_active(self) -> bool:
        """Never by itself: TensorBoard shows the tab where :meth:`data_plugin_names` has data."""
        return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Name and entry point of the tab."""
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name=TAB_NAME)

    def _static_app(self, name: str) -> Any:
        @wrappers.Request.application
        def serve(request: wrappers.Request) -> wrappers.Response:
            response: wrappers.Response = http_util.Respond(request, (STATIC / name).read_bytes(), STATIC_FILES[name])
            return response

        return serve

    def _data_app(self, answer: Callable[[Query], bytes | dict[str, Any]]) -> Any:
        @wrappers.Request.application
        def serve(request: wrappers.Request) -> wrappers.Response:
            status = 200
            try:
                if request.method not in ("GET", "HEAD"):
                    raise RequestError(405, "Only GET is answered.")
                content = answer(Query(self._provider, request))
            except RequestError as error:
                content, status = {"error": str(error)}, error.status
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            response: wrappers.Response = http_util.Respond(request, content, kind, code=status)
            return response

        return serve

    def _vocabulary(self, query: Query) -> dict[str, Any]:
        """Names, meanings and colours of the roles: the tab has none of its own."""
        return vocabulary()

    def _runs(self, query: Query) -> dict[str, Any]:
        """Every run with data: what was frozen by its first report, and how far it has come."""
        runs = []
        for run, tags in sorted(query.runs.items()):
            index = _read_index(tags)
            if index is None:
                continue
            for layer in index["layers"]:
                layer["parts"] = [
                    part for part in ("state", "classes", "curves") if layer_tag(layer["name"], part) in tags
                ]
            overview = tags[OVERVIEW_TAG]
            runs.append({**index, "name": run, "last_step": overview.max_step, "last_time": overview.max_wall_time})
        return {"format": FORMAT_VERSION, "runs": runs}

    def _overview(self, query: Query) -> bytes:
        """``table [steps, layers, columns]`` of one run, layers in the frozen order."""
        names = [layer["name"] for layer in query.index["layers"]]
        data = query.read(OVERVIEW_TAG)
        table = np.full((len(data), len(names), len(OVERVIEW_COLUMNS)), np.nan, np.float32)
        for filled, datum in zip(table, data, strict=True):
            logged = datum.arrays["table"]
            columns = {name: place for place, name in enumerate(datum.info["columns"])}
            rows = {name: place for place, name in enumerate(datum.info["layers"])}
            for row, layer in enumerate(names):
                for column, measure in enumerate(OVERVIEW_COLUMNS):
                    if layer in rows and measure in columns:
                        filled[row, column] = logged[rows[layer], columns[measure]]
        verdicts, verdict = overview_verdicts(table)
        info = {"layers": names, "columns": list(OVERVIEW_COLUMNS), "verdicts": verdicts}
        return _answer(data, info, {"table": table, "verdict": verdict})

    def _layer(self, query: Query) -> bytes:
        """Chosen fields of a layer's units, each ``[steps, units]``."""
        layer = query.layer
        fields = query.text("fields", "roles").split(",")
        unknown = [name for name in fields if name not in STATE_FIELDS]
        if unknown:
            raise RequestError(400, f"Unknown fields {unknown}; there are {list(STATE_FIELDS)}.")
        data = query.read_layer("state")
        arrays = {}
        for name in dict.fromkeys(fields):
            rows = [datum.arrays[name] for datum in data]
            empty = np.empty((0, layer["units"]), np.uint8)
            arrays[name] = np.stack(rows) if rows else empty
        return _answer(data, {"layer": layer["name"], "units": layer["units"]}, arrays)

    def _classes(self, query: Query) -> bytes:
        """``roles [steps, units]`` of one class."""
        place = query.class_place
        data = query.read_layer("classes")
        return _answer(data, {}, {"roles": self._class_roles(query, data)[:, place]})

    def _unit(self, query: Query) -> bytes:
        """``roles [steps, classes]`` of one unit."""
        unit = query.number("unit", query.layer["units"])
        data = query.read_layer("classes")
        return _answer(data, {}, {"roles": self._class_roles(query, data)[:, :, unit]})

    def _class_roles(self, query: Query, data: list[Datum]) -> Array:
        """``[steps, classes, units]``; a report with fewer classes than the first leaves ``NO_ROLE``."""
        classes, units = len(query.index["classes"]), query.layer["units"]
        roles = np.full((len(data), classes, units), NO_ROLE, np.uint8)
        for whole, datum in zip(roles, data, strict=True):
            logged = datum.arrays["roles"][:classes]
            whole[: len(logged)] = logged
        # A removed unit is removed for every class, also for those that have no images.
        removed = (roles == REMOVED).any(1, keepdims=True) & (roles == NO_ROLE)
        roles[removed] = REMOVED
        return roles

    def _curves(self, query: Query) -> bytes:
        """Ablation curves of all steps, for all classes or one: points one curve behind the other."""
        klass = None if query.text("class", "all") == "all" else query.index["classes"][query.class_place]
        data = query.read_layer("curves")
        described: list[dict[str, Any]] = []
        parts: dict[str, list[Array]] = {name: [] for name in ("ablated", "loss", "accuracy", "top5")}
        for at, datum in enumerate(data):
            start = 0
            for curve in datum.info["curves"]:
                stop = start + curve["points"]
                if curve["class"] == klass:
                    described.append({**curve, "at": at})
                    for name, chunks in parts.items():
                        chunks.append(datum.arrays[name][start:stop])
                start = stop
        arrays = {name: np.concatenate(chunks) for name, chunks in parts.items() if chunks}
        rankings = curve_rankings(described, arrays["ablated"], arrays["accuracy"]) if described else []
        return _answer(data, {"curves": described, "rankings": rankings}, arrays)


class Query:
    """One request: its parameters, checked, and the data that they name."""

    def __init__(self, data_provider: Any, request: wrappers.Request) -> None:
        self._provider = data_provider
        self._request = request
        self._context = plugin_util.context(request.environ)
        self._experiment = plugin_util.experiment_id(request.environ)

    def text(self, name: str, default: str | None = None) -> str:
        """A parameter, at most once and of a sane length."""
        values = self._request.args.getlist(name)
        if len(values) > 1 or (not values and default is None):
            raise RequestError(400, f"Expected one parameter {name!r}, got {len(values)}.")
        value = values[0] if values else str(default)
        if len(value) > 4096:
            raise RequestError(400, f"The parameter {name!r} is too long.")
        return value

    def number(self, name: str, limit: int) -> int:
        """A parameter that is an index below ``limit``."""
        text = self.text(name)
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) < limit):
            raise RequestError(400, f"The parameter {name!r} has to be a whole number from 0 to {limit - 1}.")
        return int(text)

    @cached_property
    def runs(self) -> Mapping[str, Mapping[str, Any]]:
        """For each run, its time series by tag."""
        if self._provider is None:
            return {}
        found: Mapping[str, Mapping[str, Any]] = self._provider.list_tensors(
            self._context, experiment_id=self._experiment, plugin_name=PLUGIN_NAME
        )
        return found

    @cached_property
    def run(self) -> str:
        """The run that the request names."""
        run = self.text("run")
        if run not in self.runs or _read_index(self.runs[run]) is None:
            raise RequestError(404, "There is no such run with unit roles.")
        return run

    @cached_property
    def index(self) -> dict[str, Any]:
        """What the first report of the run froze."""
        index = _read_index(self.runs[self.run])
        assert index is not None  # `run` has checked it
        return index

    @cached_property
    def layer(self) -> dict[str, Any]:
        """The layer that the request names by its place in the index."""
        layer: dict[str, Any] = self.index["layers"][self.number("layer", len(self.index["layers"]))]
        return layer

    @cached_property
    def class_place(self) -> int:
        """Place of the requested class among those that were logged."""
        return self.number("class", len(self.index["classes"]))

    def read_layer(self, part: str) -> list[Datum]:
        """All steps of one part of the layer; steps at which it had another number of units at first are left out."""
        data = self.read(layer_tag(self.layer["name"], part))
        return [datum for datum in data if datum.info.get("units") == self.layer["units"]]

    def read(self, tag: str) -> list[Datum]:
        """All steps of one tag, in order, the last word on each step, without what cannot be read."""
        found = self._provider.read_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=PLUGIN_NAME,
            downsample=ALL_STEPS,
            run_tag_filter=provider.RunTagFilter(runs=[self.run], tags=[tag]),
        )
        by_step = {datum.step: datum for datum in _readable(found.get(self.run, {}).get(tag, ()))}
        return [by_step[step] for step in sorted(by_step)]


def _readable(data: Any) -> Iterator[Datum]:
    for logged in data:
        try:
            info, arrays = unpack(inflate(logged.numpy.tobytes()))
        except (ValueError, KeyError, TypeError):
            continue
        if info.get("format", FORMAT_VERSION + 1) <= FORMAT_VERSION:
            yield Datum(int(logged.step), float(logged.wall_time), info, arrays)


def _read_index(tags: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the first report of a run froze, or None where it is missing, broken or of a later version."""
    if OVERVIEW_TAG not in tags:
        return None
    try:
        index: dict[str, Any] = json.loads(tags[OVERVIEW_TAG].plugin_content)
        return index if index["format"] <= FORMAT_VERSION else None
    except (ValueError, KeyError, TypeError):
        return None


def _answer(data: list[Datum], info: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A container with the steps and epochs of ``data`` beside what a view asked for."""
    time = {
        "steps": np.array([datum.step for datum in data], np.float64),
        "epochs": np.array([datum.info["epoch"] for datum in data], np.float64),
    }
    return pack(info, {**time, **arrays})
