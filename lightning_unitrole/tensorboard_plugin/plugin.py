"""The server side of the "Unit roles" tab: its own files, and the logged containers cut to what a view needs.

Nothing here imports torch: TensorBoard runs where no training does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from lightning_unitrole.reports.verdicts import spoken
from lightning_unitrole.reports.vocabulary import NO_ROLE, vocabulary
from lightning_unitrole.tensorboard_plugin.contents import (
    CURVE_FIELDS,
    EXAMPLE_KINDS,
    OPTIONAL,
    SPLITS,
    STATE_FIELDS,
    classes_part,
    contributions_part,
    curves_part,
    examples_part,
    far_behind,
    overview_part,
    pruning_part,
    state_part,
    thumbnails_part,
)
from lightning_unitrole.tensorboard_plugin.index import (
    UnreadableError,
    counted,
    printable,
)
from lightning_unitrole.tensorboard_plugin.packing import Array, pack
from lightning_unitrole.tensorboard_plugin.query import Listing, Query, RequestError, index_of
from lightning_unitrole.tensorboard_plugin.reading import Series, Shelf, Table, answer_time
from lightning_unitrole.tensorboard_plugin.schema import (
    CONTRIBUTIONS,
    FORMAT_VERSION,
    OVERVIEW_COLUMNS,
    OVERVIEW_TAG,
    PARTS,
    PLUGIN_NAME,
    PRUNING_TAG,
    TAB_NAME,
    THUMBNAILS_TAG,
    layer_tag,
)
from lightning_unitrole.tensorboard_plugin.verdicts import (
    curve_rankings,
    overview_doubts,
    overview_findings,
    overview_verdicts,
)

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
STATIC_FILES = {
    "app.js": "text/javascript",
    "api.js": "text/javascript",
    "charts.js": "text/javascript",
    "derive.js": "text/javascript",
    "dom.js": "text/javascript",
    "help.js": "text/javascript",
    "frame.js": "text/javascript",
    "host.js": "text/javascript",
    "index.js": "text/javascript",
    "overview.css": "text/css",
    "palette.js": "text/javascript",
    "raster.js": "text/javascript",
    "start.js": "text/javascript",
    "state.js": "text/javascript",
    "style.css": "text/css",
    "unpack.js": "text/javascript",
    "vocabulary.js": "text/javascript",
    "views/ablation.js": "text/javascript",
    "views/entropy.js": "text/javascript",
    "views/examples.js": "text/javascript",
    "views/doubts.js": "text/javascript",
    "views/layers.js": "text/javascript",
    "views/overview.js": "text/javascript",
    "views/parts.js": "text/javascript",
    "views/pruning.js": "text/javascript",
    "views/runs.js": "text/javascript",
    "views/transitions.js": "text/javascript",
    "views/unit.js": "text/javascript",
    "views/units.js": "text/javascript",
    "views/usefulness.js": "text/javascript",
}
"""Every file that is served. A request for another one finds nothing, whatever lies in the directory."""

DATA = (
    "vocabulary",
    "runs",
    "overview",
    "layer",
    "classes",
    "unit",
    "contributions",
    "examples",
    "curves",
    "pruning",
)
"""What can be asked for besides."""


class UnitRolesPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """The tab "Unit roles". Reads through TensorBoard's data provider alone."""

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._provider = context.data_provider
        self._shelf = Shelf()
        self._listing = Listing()

    def get_plugin_apps(self) -> dict[str, Any]:
        """Routes of the tab, below ``data/plugin/unit_roles``."""
        routes = {f"/{name}": self._static_app(name) for name in STATIC_FILES}
        for name in DATA:
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
                content = answer(Query(self._provider, request, self._listing))
            except RequestError as error:
                content, status = {"error": str(error)}, error.status
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            response: wrappers.Response = http_util.Respond(request, content, kind, code=status)
            return response

        return serve

    def _vocabulary(self, query: Query) -> dict[str, Any]:
        """Names, meanings and colours of the roles, and the glossary: the tab has none of its own."""
        return vocabulary()

    def _runs(self, query: Query) -> dict[str, Any]:
        """Every run with data: what was frozen by its first report, how far it has come, and what cannot be shown."""
        query.look_again()
        runs, skipped = [], []
        for run, tags in sorted(query.runs.items()):
            name, pruned = printable(run), PRUNING_TAG in tags
            if pruned and OVERVIEW_TAG not in tags:
                runs.append({"name": name, "pruned": True, "layers": [], "last_step": int(tags[PRUNING_TAG].max_step)})
                continue
            try:
                index = index_of(tags)
            except UnreadableError as error:
                skipped.append({"run": name, "reason": f"The run cannot be shown: {error}."})
                continue
            skipped += [{"run": name, "reason": reason} for reason in counted(index.skipped)]
            runs.append(
                {
                    "name": name,
                    "layers": [{**asdict(layer), "parts": _parts(layer.name, tags)} for layer in index.layers],
                    "classes": index.classes,
                    "class_names": index.class_names,
                    "num_classes": index.num_classes,
                    "every_class": index.every_class,
                    "criterion": spoken(index.criterion),
                    "pruned": pruned,
                    "last_step": max(int(tags[tag].max_step) for tag in (OVERVIEW_TAG, PRUNING_TAG) if tag in tags),
                }
            )
        return {"format": FORMAT_VERSION, "runs": runs, "skipped": skipped}

    def _overview(self, query: Query) -> bytes:
        """``table [steps, layers, columns]`` of one run, layers in the frozen order, and what to say of it."""
        names = [layer.name for layer in query.index.layers]
        series = query.read(OVERVIEW_TAG, overview_part(query.index))
        table = series.stack("table", np.empty((0, len(names), len(OVERVIEW_COLUMNS)), np.float32))
        verdicts, verdict = overview_verdicts(table, query.index.criterion)
        doubts, roles, order = overview_doubts(table)
        info = {
            "layers": names,
            "columns": list(OVERVIEW_COLUMNS),
            "verdicts": verdicts,
            "doubts": doubts,
            "findings": overview_findings(table, names),
        }
        return _answer(series, info, {"table": table, "verdict": verdict, "doubt_roles": roles, "doubt_order": order})

    def _layer(self, query: Query) -> bytes:
        """Chosen fields of a layer's units, each ``[steps, units]``; of one ``unit`` or ``until`` one step alone.

        Those ``beside`` are given for a few analyses only, as ``beside_<field> [n, units]``: for the last that is not
        after each of the steps ``at``, and for the one before that; ``beside`` holds their places among all.
        """
        layer = query.layer
        fields, beside = _fields(query, "fields", "roles"), _fields(query, "beside", "")
        unit, until = query.optional("unit", layer.units), query.optional("until", 1 << 53)
        whole = unit is not None or until is not None
        found = self._state(query, list(STATE_FIELDS) if whole else fields).only(fields, unit=unit, until=until)
        more = self._beside(query, beside, found) if beside else {}
        info = {"layer": layer.name, "units": layer.units, "skipped": found.skipped}
        return pack(info, {**found.times, **found.arrays, **more})

    def _state(self, query: Query, fields: Sequence[str]) -> Table:
        """Some fields of the layer at all steps; all of them where that is hardly more work."""
        layer, tag = query.layer, layer_tag(query.layer.name, "state")
        key = (query.version(tag), layer)
        read_now = list(STATE_FIELDS) if not fields or far_behind(fields) else list(fields)

        def read() -> Table:
            series = query.read(tag, state_part(layer, read_now))
            arrays = {name: series.stack(name, np.empty((0, layer.units), STATE_FIELDS[name])) for name in read_now}
            return Table(answer_time(series), arrays, series.skipped)

        return self._shelf.find((*key, None)) or self._shelf.table(
            (*key, None if len(read_now) == len(STATE_FIELDS) else tuple(sorted(read_now))), read
        )

    def _beside(self, query: Query, fields: Sequence[str], table: Table) -> dict[str, Array]:
        """Some more fields at a few of the steps of a table."""
        layer, tag = query.layer, layer_tag(query.layer.name, "state")
        every = table.times["steps"]
        wanted = [max(int(np.searchsorted(every, step, side="right")) - 1, 0) for step in query.numbers("at", 1 << 53)]
        places = sorted({place for at in wanted for place in (at - 1, at) if 0 <= place < len(every)})
        steps = [int(every[place]) for place in places]
        whole = self._shelf.find((query.version(tag), layer, None))
        if whole is not None:
            rows = {int(step): at for at, step in enumerate(whole.times["steps"])}
            values = {name: {step: whole.arrays[name][rows[step]] for step in steps if step in rows} for name in fields}
        else:
            series = query.read(tag, state_part(layer, list(STATE_FIELDS)), steps)
            values = {name: {row.step: row.content.arrays[name] for row in series.rows} for name in fields}
        fill = {"roles": NO_ROLE, "rank": np.iinfo(np.uint16).max, **OPTIONAL}
        unknown = {name: np.full(layer.units, fill.get(name, np.nan), STATE_FIELDS[name]) for name in fields}
        stacked = {
            f"beside_{name}": np.stack([values[name].get(step, unknown[name]) for step in steps])
            for name in fields
            if steps
        }
        return {"beside": np.array(places, np.float64), **stacked}

    def _classes(self, query: Query) -> bytes:
        """``roles [steps, units]`` of one class."""
        part = classes_part(query.index, query.layer, klass=query.class_place)
        series = query.read(layer_tag(query.layer.name, "classes"), part)
        return _answer(series, {}, {"roles": series.stack("roles", np.empty((0, query.layer.units), np.uint8))})

    def _unit(self, query: Query) -> bytes:
        """``roles [steps, classes]`` of one unit."""
        part = classes_part(query.index, query.layer, unit=query.number("unit", query.layer.units))
        series = query.read(layer_tag(query.layer.name, "classes"), part)
        return _answer(series, {}, {"roles": series.stack("roles", np.empty((0, len(query.index.classes)), np.uint8))})

    def _contributions(self, query: Query) -> bytes:
        """Contribution and standard error ``[1, M]`` of one unit for some classes at one step, if there are any."""
        part = contributions_part(query.index, query.layer, query.number("unit", query.layer.units))
        series = query.read(layer_tag(query.layer.name, "contributions"), part, [query.number("step", 1 << 53)])
        empty = np.empty((0, 0), np.float16)
        classes = series.stack("classes", np.empty((0, 0), np.uint16))
        return _answer(series, {}, {"classes": classes, **{name: series.stack(name, empty) for name in CONTRIBUTIONS}})

    def _examples(self, query: Query) -> bytes:
        """The images that one unit responds to at one step, ``[1, splits, kinds, images]``, with their pixels."""
        part = examples_part(query.index, query.layer, query.number("unit", query.layer.units))
        series = query.read(layer_tag(query.layer.name, "examples"), part, [query.number("step", 1 << 53)])
        if not series.rows:
            return _answer(series, {}, {})
        content = series.rows[0].content
        pictures = query.read(THUMBNAILS_TAG, thumbnails_part(content.arrays["images"].ravel().tolist()))
        found = {
            float(name): picture
            for row in pictures.rows
            for name, picture in zip(row.content.arrays["names"], row.content.arrays["pixels"], strict=True)
        }
        shapes = {picture.shape for picture in found.values()}
        shape = shapes.pop() if len(shapes) == 1 else (1, 1, 1)
        names = np.array([name for name, picture in found.items() if picture.shape == shape], np.float64)
        pixels = np.stack([found[name] for name in names.tolist()]) if len(names) else np.zeros((0, *shape), np.uint8)
        info = {**content.info, "picture": list(shape), "splits": list(SPLITS), "kinds": list(EXAMPLE_KINDS)}
        return _answer(series, info, {**content.arrays, "names": names, "pixels": pixels})

    def _pruning(self, query: Query) -> bytes:
        """What pruning did up to the latest step; nothing where nothing was pruned."""
        series = query.read(PRUNING_TAG, pruning_part())
        latest = Series(series.rows[-1:], series.skipped)
        content = latest.rows[0].content if latest.rows else None
        return _answer(latest, content.info if content else {}, content.arrays if content else {})

    def _curves(self, query: Query) -> bytes:
        """Ablation curves of all steps, for all classes or one: points one curve behind the other."""
        klass = None if query.text("class", "all") == "all" else query.index.classes[query.class_place]
        series = query.read(layer_tag(query.layer.name, "curves"), curves_part(query.index, query.layer, klass))
        described: list[dict[str, Any]] = [
            {**curve, "at": at} for at, row in enumerate(series.rows) for curve in row.content.info["curves"]
        ]
        arrays = {
            name: np.concatenate([np.empty(0, kind), *(row.content.arrays[name] for row in series.rows)])
            for name, kind in CURVE_FIELDS.items()
        }
        by_class = [bool(row.content.info["by_class"]) for row in series.rows]
        rankings = curve_rankings(
            described, arrays["ablated"], arrays["accuracy"], query.index.criterion, by_order=by_class
        )
        return _answer(series, {"curves": described, "rankings": rankings, "by_class": by_class}, arrays)


def _fields(query: Query, parameter: str, default: str) -> list[str]:
    """Names of fields that a request lists, each once."""
    fields = list(dict.fromkeys(name for name in query.text(parameter, default).split(",") if name))
    unknown = [name for name in fields if name not in STATE_FIELDS]
    if unknown:
        raise RequestError(400, f"Unknown fields {unknown}; there are {list(STATE_FIELDS)}.")
    return fields


def _parts(layer: str, tags: Mapping[str, Any]) -> list[str]:
    return [part for part in PARTS if layer_tag(layer, part) in tags]


def _answer(series: Series, info: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A container with the steps and epochs of the analyses beside what a view asked for."""
    return pack({**info, "skipped": series.skipped}, {**answer_time(series), **arrays})
