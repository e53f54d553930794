"""What each part of a log may hold: its size before anything is inflated, and its arrays, checked by type and range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_unitrole.reports.vocabulary import NO_ROLE, REMOVED, ROLES
from lightning_unitrole.tensorboard_plugin.index import MAX_CELLS, MAX_LAYERS, LayerIndex, RunIndex, is_name, is_whole
from lightning_unitrole.tensorboard_plugin.packing import MAX_BYTES, MAX_HEADER_BYTES, Array
from lightning_unitrole.tensorboard_plugin.schema import (
    CONTRIBUTIONS,
    CUT_COLUMNS,
    EFFECTS,
    EXAMPLES,
    MEASURES,
    NETWORK_COLUMNS,
    NO_CLASS,
    OVERVIEW_COLUMNS,
    STRONGEST,
    UNKNOWN_EFFECT,
)

STATE_FIELDS = {
    "roles": "u1",
    "rank": "u2",
    **dict.fromkeys((*MEASURES, *CONTRIBUTIONS), "f2"),
    **dict.fromkeys(EFFECTS, "u1"),
}
"""What the state of a layer holds of each unit, and in which type."""
OPTIONAL = {**dict.fromkeys(CONTRIBUTIONS, np.nan), **dict.fromkeys(EFFECTS, UNKNOWN_EFFECT)}
"""What stands in the place of a field that was not measured, or that earlier versions did not log."""
CURVE_FIELDS = {"ablated": "u4", "loss": "f4", "accuracy": "f2", "top5": "f2"}
SPLITS = ("train", "val")
ORDERS = ("least_first", "most_first", "contribution", "random", *(f"random_{draw}" for draw in range(1, 16)))

EXAMPLE_KINDS = ("contribution", "activation")
MAX_EXAMPLES = 8
MAX_CUTS = 1000
MAX_MAP_SIDE = 16
MAX_PICTURE_SIDE = 128

_HEADER = 1 << 16
_ROOM = 4
"""How many times its size a container may have: later versions may add arrays that this one passes over."""
_CURVE_HEADER = 200

_KNOWN_CODES = np.full(256, NO_ROLE, np.uint8)
_KNOWN_CODES[[role.code for role in ROLES]] = [role.code for role in ROLES]


@dataclass(frozen=True)
class Content:
    """One analysis, reduced to what a view asked for.

    Attributes:
        info: small facts, which strict JSON can hold.
        arrays: copies, so that the container they come from can be forgotten.
        remarks: what was left out of it, one clause each.
    """

    info: Mapping[str, Any]
    arrays: Mapping[str, Array]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """How one part of a log is read.

    Attributes:
        limit: number of bytes that its largest container can have.
        max_header: number of bytes that its header can have.
        names: the arrays that are wanted, where that is not all of them: a container is then inflated so far only.
        weight: bytes that an analysis counts for where it is not what was read of it, so that all cuts of a log leave
            out the same analyses where there are too many.
        read: from the header and the arrays of a container to what a view asked for; ValueError where it does not fit.
    """

    limit: int
    max_header: int
    read: Callable[[Mapping[str, Any], Mapping[str, Array]], Content]
    names: tuple[str, ...] = ()
    weight: int = 0


def overview_part(index: RunIndex) -> Part:
    """``table [layers, columns]``, rows in the order of the index; NaN for what was not logged or cannot be."""
    names = {layer.name: row for row, layer in enumerate(index.layers)}
    units = np.array([layer.units for layer in index.layers])
    low, high = (np.stack([_bounds(column, units)[side] for column in OVERVIEW_COLUMNS], 1) for side in (0, 1))

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        layers, columns = (_names(info.get(key)) for key in ("layers", "columns"))
        logged = _array(arrays, "table", "f4", (len(layers), len(columns)))
        table = np.full((len(names), len(OVERVIEW_COLUMNS)), np.nan, np.float32)
        rows = {names[name]: place for place, name in enumerate(layers) if name in names}
        known = {place: columns.index(name) for place, name in enumerate(OVERVIEW_COLUMNS) if name in columns}
        if rows and known:
            table[np.ix_(list(rows), list(known))] = logged[np.ix_(list(rows.values()), list(known.values()))]
        possible = np.isnan(table) | ((table >= low) & (table <= high))
        table[~possible] = np.nan
        return Content({}, {"table": table}, () if possible.all() else ("with impossible numbers, which are left out",))

    text = sum(6 * len(layer.name) + 8 for layer in index.layers)
    return _part(4 * len(names) * len(OVERVIEW_COLUMNS), text, read)


def state_part(layer: LayerIndex, fields: Sequence[str]) -> Part:
    """Chosen fields of the units of a layer, each ``[units]``."""

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        _check_units(info, layer)
        found = {name: _field(arrays, name, (layer.units,), (layer.units,)).copy() for name in fields}
        return _with_known_roles(found)

    whole = layer.units * sum(int(kind[1]) for kind in STATE_FIELDS.values())
    part = _part(whole, 0, read)
    return replace(part, names=() if set(fields) == set(STATE_FIELDS) else tuple(fields), weight=whole)


def far_behind(fields: Sequence[str]) -> bool:
    """Whether reading these fields is most of the work of reading all: they lie where the state was logged."""
    order = list(STATE_FIELDS)
    sizes = [int(kind[1]) for kind in STATE_FIELDS.values()]
    return 2 * sum(sizes[: 1 + max(map(order.index, fields))]) > sum(sizes)


def classes_part(index: RunIndex, layer: LayerIndex, *, klass: int | None = None, unit: int | None = None) -> Part:
    """``roles [units]`` of one class, or ``roles [classes]`` of one unit; classes without a word have no role."""
    classes = len(index.classes)

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        _check_units(info, layer)
        logged = _array(arrays, "roles", "u1", (None, layer.units))[:classes]
        roles = np.full((classes, layer.units), NO_ROLE, np.uint8)
        roles[: len(logged)] = logged
        # A removed unit is removed for every class, also for those that have no images.
        roles[(roles == REMOVED).any(0) & (roles == NO_ROLE)] = REMOVED
        return _with_known_roles({"roles": (roles[klass] if unit is None else roles[:, unit]).copy()})

    return _part(classes * layer.units, 0, read)


def contributions_part(index: RunIndex, layer: LayerIndex, unit: int) -> Part:
    """Contribution and standard error of one unit for some ``classes``, ``[M]`` each."""

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        _check_units(info, layer)
        if "classes" in arrays:
            classes = _array(arrays, "classes", "u2", (None, layer.units))[:, unit]
        else:  # the same for all units
            classes = np.array(index.classes, np.uint32).astype(np.uint16)
        rows = min(len(classes), *(len(arrays[name]) for name in CONTRIBUTIONS if name in arrays and arrays[name].ndim))
        found = {"classes": classes[:rows].copy()}
        for name in CONTRIBUTIONS:
            found[name] = _field(arrays, name, (None, layer.units), (rows, layer.units))[:rows, unit].copy()
        return Content({}, found)

    return _part((2 * len(CONTRIBUTIONS) + 2) * max(STRONGEST, len(index.classes)) * layer.units, 0, read)


def examples_part(index: RunIndex, layer: LayerIndex, unit: int) -> Part:
    """The images that one unit responds to, ``[splits, kinds, images]``, its maps of them, and its twins."""

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        _check_units(info, layer)
        size = info.get("map")
        if not (isinstance(size, list) and len(size) == 2 and all(is_whole(side, 1, MAX_MAP_SIDE) for side in size)):
            raise ValueError("the maps have an impossible size")
        shape = (len(SPLITS), len(EXAMPLE_KINDS), None, layer.units)
        found = {name: _array(arrays, name, kind, shape)[..., unit].copy() for name, kind in EXAMPLES.items()}
        if any(values.shape[2] > MAX_EXAMPLES for values in found.values()):
            raise ValueError("there are more images than can be shown")
        maps = _array(arrays, "maps", "u1", (*shape[:2], found["images"].shape[2], layer.units, size[0] * size[1]))
        twins = _array(arrays, "twins", "u2", (None, layer.units))[:MAX_EXAMPLES, unit].copy()
        correlation = _array(arrays, "correlation", "f2", (len(twins), layer.units))[:, unit].copy()
        twins[twins >= layer.units] = NO_CLASS
        if len({values.shape for values in found.values()}) > 1:
            raise ValueError("the images do not fit together")
        found |= {"maps": maps[..., unit, :].copy(), "twins": twins, "correlation": correlation}
        return Content({"map": size}, found)

    each = len(SPLITS) * len(EXAMPLE_KINDS) * MAX_EXAMPLES
    return _part(layer.units * each * (12 + MAX_MAP_SIDE**2), 0, read)


def thumbnails_part(wanted: Sequence[float]) -> Part:
    """Those of the pictures ``pixels [n, height, width, 1 or 3]`` whose ``names [n]`` are wanted."""

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        names = _array(arrays, "names", "f8", (None,))
        pixels = _array(arrays, "pixels", "u1", (len(names), None, None, None))
        if pixels.shape[3] not in (1, 3) or not all(1 <= side <= MAX_PICTURE_SIDE for side in pixels.shape[1:3]):
            raise ValueError("the pictures have an impossible shape")
        chosen = np.isin(names, wanted)
        return Content({}, {"names": names[chosen].copy(), "pixels": pixels[chosen].copy()})

    return _part(MAX_BYTES, 0, read)


def pruning_part() -> Part:
    """What pruning did: ``network [2, columns]``, ``cuts [cuts, columns]``, ``widths [2, layers]`` and ``cut_at``."""

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        layers, columns, whole = _names(info.get("layers")), info.get("columns"), info.get("kept_whole")
        if not isinstance(columns, dict) or not isinstance(whole, dict):
            raise ValueError("the layers and columns are not named")
        if len(layers) > MAX_LAYERS or not all(name == "" or is_name(name) for name in layers):
            raise ValueError("there are more layers than can be shown, or some have impossible names")
        reasons = {name: reason for name, reason in whole.items() if is_name(name) and is_name(reason)}
        found = {}
        for name, wanted, rows in (("network", NETWORK_COLUMNS, 2), ("cuts", CUT_COLUMNS, None)):
            logged = _names(columns.get(name))
            table = _array(arrays, name, "f8", (rows, len(logged)))[:MAX_CUTS]
            found[name] = np.full((len(table), len(wanted)), np.nan)
            for place, column in enumerate(wanted):
                if column in logged:
                    found[name][:, place] = table[:, logged.index(column)]
        widths = _array(arrays, "widths", "u4", (2, len(layers)))
        cut_at = _array(arrays, "cut_at", "u2", (None,))
        if int(widths[0].astype(np.int64).sum()) != len(cut_at) or len(cut_at) > MAX_CELLS:
            raise ValueError("the widths of the layers do not fit their units")
        facts = {"layers": layers, "columns": {"network": NETWORK_COLUMNS, "cuts": CUT_COLUMNS}}
        return Content({**facts, "kept_whole": reasons}, {**found, "widths": widths.copy(), "cut_at": cut_at.copy()})

    return _part(MAX_BYTES, MAX_HEADER_BYTES, read)


def curves_part(index: RunIndex, layer: LayerIndex, klass: int | None) -> Part:
    """The curves of one class, or of all together: what each is, and the points of all one behind the other."""

    def read(info: Mapping[str, Any], arrays: Mapping[str, Array]) -> Content:
        _check_units(info, layer)
        described = info.get("curves")
        if not isinstance(described, list):
            raise ValueError("the curves are not described")
        known = [_curve(curve, layer) for curve in described]
        points = {name: _array(arrays, name, kind, (None,)) for name, kind in CURVE_FIELDS.items()}
        total = sum(curve["points"] for curve in known)
        if any(len(values) != total for values in points.values()):
            raise ValueError("the curves have more or fewer points than they should")
        chosen, seen, start = [], set(), 0
        parts: list[slice] = []
        for curve in known:
            part = slice(start, start + curve["points"])
            start = part.stop
            key = (curve["split"], curve["order"])
            if curve["class"] != klass or key in seen or curve["split"] not in SPLITS or curve["order"] not in ORDERS:
                continue
            off = points["ablated"][part].astype(np.int64)
            if (np.diff(off) <= 0).any() or off[-1] > layer.units:
                raise ValueError("the curves do not switch off more and more units")
            seen.add(key)
            chosen.append(curve)
            parts.append(part)
        pieces = {name: [values[part] for part in parts] or [values[:0]] for name, values in points.items()}
        by_class = any(curve["class"] is not None for curve in known)
        return Content(
            {"curves": chosen, "by_class": by_class}, {name: np.concatenate(each) for name, each in pieces.items()}
        )

    curves = len(SPLITS) * (len(ORDERS) + len(index.classes))
    return _part(curves * (layer.units + 1) * 12, curves * _CURVE_HEADER, read)


def _curve(described: Any, layer: LayerIndex) -> dict[str, Any]:
    """The facts about one curve that the tab knows, and no others."""
    if not isinstance(described, dict):
        raise ValueError("the curves are not described")
    bounds = {"points": (1, layer.units + 1), "turning": (0, layer.units), "turning_accuracy": (0, layer.units)}
    if not all(is_whole(described.get(key), *bound) for key, bound in bounds.items()):
        raise ValueError("the curves have impossible lengths or turning points")
    klass = described.get("class")
    if not (klass is None or is_whole(klass, 0, 1 << 31)):
        raise ValueError("the curves belong to impossible classes")
    texts = {key: described.get(key) for key in ("split", "order")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("the curves are of no known kind")
    return {**texts, "class": klass, **{key: described[key] for key in bounds}}


def _with_known_roles(arrays: dict[str, Array]) -> Content:
    """The same with codes that this version does not know shown as no role."""
    roles = arrays.get("roles")
    if roles is None:
        return Content({}, arrays)
    known = _KNOWN_CODES[roles]
    strange = bool((known != roles).any())
    return Content(
        {},
        {**arrays, "roles": known},
        ("with roles that this version does not know, shown as having none",) if strange else (),
    )


def _check_units(info: Mapping[str, Any], layer: LayerIndex) -> None:
    units = info.get("units")
    if units != layer.units or not is_whole(units, 1, layer.units):
        raise ValueError(f"the layer did not begin with {layer.units} units, as it did in the first report")


def _array(arrays: Mapping[str, Array], name: str, kind: str, shape: tuple[int | None, ...]) -> Array:
    """An array of a container, if it is what it should be; None stands for any length."""
    array = arrays.get(name)
    if array is None or array.dtype != np.dtype(f"<{kind}") or array.ndim != len(shape):
        raise ValueError(f"the array {name!r} is missing or of another type")
    if any(expected not in (None, found) for expected, found in zip(shape, array.shape, strict=True)):
        raise ValueError(f"the array {name!r} has another shape than it should")
    return array


def _field(arrays: Mapping[str, Array], name: str, shape: tuple[int | None, ...], whole: tuple[int, ...] = ()) -> Array:
    """A field of the units; where it may be missing and is, what stands in its place."""
    if name in OPTIONAL and name not in arrays:
        return np.full(whole, OPTIONAL[name], STATE_FIELDS[name])
    return _array(arrays, name, STATE_FIELDS[name], shape)


def _names(value: Any) -> list[str]:
    if not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError("the layers and columns are not named")
    return value


def _bounds(column: str, units: Array) -> tuple[Array, Array]:
    """Between what the numbers of a column must lie for each layer."""
    if column == "present" or (column.startswith("units_") and column != "units_changed"):
        return np.zeros(len(units)), units.astype(np.float64)
    if column.startswith("entropy"):
        return np.zeros(len(units)), np.full(len(units), 1e3)
    if column in ("images", "check_images", "macs"):
        return np.zeros(len(units)), np.full(len(units), 1e15 if column == "macs" else 1e9)
    if column.endswith("agreement"):
        return np.full(len(units), -1 - 1e-4), np.full(len(units), 1 + 1e-4)
    if column.endswith("gap") or column.startswith(("margin", "check")):  # a score of the user's own may go beyond 1
        return np.full(len(units), -1e6), np.full(len(units), 1e6)
    return np.zeros(len(units)), np.full(len(units), 1 + 1e-4)


def _part(arrays: int, text: int, read: Callable[[Mapping[str, Any], Mapping[str, Array]], Content]) -> Part:
    """A part whose arrays have so many bytes at most, and whose header has so much text of its own."""
    header = min(MAX_HEADER_BYTES, text + _HEADER)
    return Part(min(MAX_BYTES, _ROOM * arrays + header), header, read)
