"""What the first report of a run froze, checked once and completely: nothing behind this module asks again.

A log may come from anybody, and from a version of this package that is yet to be written. What is wrong with a run
becomes a sentence for the reader of the tab, and never touches the other runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_unitrole.tensorboard_plugin.packing import read_json
from lightning_unitrole.tensorboard_plugin.schema import FORMAT_VERSION

MAX_INDEX_BYTES = 1 << 20
MAX_LAYERS = 1024
MAX_UNITS = (1 << 16) - 1
"""Ranks are logged in 16 bits, and one of their values stands for removed units."""
MAX_CELLS = 1 << 24
"""Largest number of (class, unit) pairs of one layer."""
MAX_CLASSES = 1000
MAX_NAME = 1000
MAX_SIDE = 1 << 16


class UnreadableError(Exception):
    """Something in a log that cannot be shown; the message is a clause that says why."""


@dataclass(frozen=True)
class LayerIndex:
    """One layer of a run: its name, its number of units before any pruning, and the size of its maps."""

    name: str
    units: int
    map_size: tuple[int, int]


@dataclass(frozen=True)
class RunIndex:
    """What belongs to a run for good.

    Attributes:
        layers: those that can be shown, in the order of the tab.
        classes: indices of the classes that are logged one by one.
        class_names: their names.
        num_classes: number of all classes.
        every_class: names of all classes; of fewer where there are very many or an earlier version wrote the log.
        criterion: what ranked the units.
        skipped: why other layers cannot be shown, one sentence each.
    """

    layers: tuple[LayerIndex, ...]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    num_classes: int
    every_class: tuple[str, ...]
    criterion: str
    skipped: tuple[str, ...]


def read_index(content: bytes) -> RunIndex:
    """Check and read the index of a run.

    Args:
        content: what TensorBoard keeps of the run's first event.

    Raises:
        UnreadableError: if nothing of the run can be shown.

    Example:
        >>> read_index(b'{"format": 99}')
        Traceback (most recent call last):
        ...
        lightning_unitrole.tensorboard_plugin.index.UnreadableError: a newer version of \
lightning_unitrole wrote format 99, and this one reads formats up to 1; update the package to see what it wrote
    """
    if not content:
        raise UnreadableError("the first event does not say which layers there are")
    if len(content) > MAX_INDEX_BYTES:
        raise UnreadableError(f"the index has {len(content)} bytes, more than {MAX_INDEX_BYTES}")
    try:
        index = read_json(content)
    except ValueError:
        raise UnreadableError("the index is damaged") from None
    if not isinstance(index, dict):
        raise UnreadableError("the index is damaged")
    check_format(index)
    layers, skipped = _layers(index)
    classes, names = _classes(index)
    num_classes: Any = index.get("num_classes")
    criterion: Any = index.get("criterion")
    if not is_whole(num_classes, len(classes), 1 << 31):
        raise UnreadableError("the number of classes is missing or impossible")
    if not is_name(criterion):
        raise UnreadableError("what ranked the units is not named")
    fitting = tuple(layer for layer in layers if layer.units * max(1, len(classes)) <= MAX_CELLS)
    skipped += [f"The layer {layer.name!r} has too many units and classes." for layer in layers if layer not in fitting]
    if not fitting:
        raise UnreadableError("there is no layer that can be shown")
    return RunIndex(
        fitting, classes, names, num_classes, _every_class(index, classes, names), criterion, tuple(skipped)
    )


def check_format(described: Mapping[str, Any]) -> None:
    """Pass only what this version of the package can read.

    Raises:
        UnreadableError: if the format is newer, or is no format at all.
    """
    version: Any = described.get("format")
    if not is_whole(version, 1, 1 << 31):
        raise UnreadableError("the format is not known")
    if version > FORMAT_VERSION:
        raise UnreadableError(
            f"a newer version of lightning_unitrole wrote format {version}, and this one reads formats up to "
            f"{FORMAT_VERSION}; update the package to see what it wrote"
        )


def _layers(index: dict[str, Any]) -> tuple[list[LayerIndex], list[str]]:
    described = index.get("layers")
    if not isinstance(described, list) or not described:
        raise UnreadableError("no layer is named")
    layers: dict[str, LayerIndex] = {}
    skipped = []
    for place, layer in enumerate(described[:MAX_LAYERS]):
        name = layer.get("name") if isinstance(layer, dict) else None
        # A net that is one convolution has a layer without a name.
        if not (isinstance(name, str) and (name == "" or is_name(name))) or name in layers:
            skipped.append(f"Layer {place} has no name of its own.")
        elif not is_whole(layer.get("units"), 1, MAX_UNITS):
            skipped.append(f"The layer {name!r} has an impossible number of units.")
        elif not _is_size(layer.get("map_size")):
            skipped.append(f"The layer {name!r} has maps of an impossible size.")
        else:
            height, width = layer["map_size"]
            layers[name] = LayerIndex(name, layer["units"], (height, width))
    if len(described) > MAX_LAYERS:
        skipped.append(f"{len(described) - MAX_LAYERS} layers beyond the first {MAX_LAYERS} are not shown.")
    return list(layers.values()), skipped


def _classes(index: dict[str, Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    classes, names = index.get("classes"), index.get("class_names")
    if not (isinstance(classes, list) and isinstance(names, list) and len(classes) == len(names) <= MAX_CLASSES):
        raise UnreadableError("the classes and their names do not fit together")
    if not all(is_whole(klass, 0, 1 << 31) for klass in classes) or len(set(classes)) < len(classes):
        raise UnreadableError("the classes have impossible numbers")
    if not all(isinstance(name, str) and (name == "" or is_name(name)) for name in names):
        raise UnreadableError("the classes have impossible names")
    return tuple(classes), tuple(names)


def _every_class(index: dict[str, Any], classes: tuple[int, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    every = index.get("every_class")
    if isinstance(every, list) and all(isinstance(name, str) and (name == "" or is_name(name)) for name in every):
        return tuple(every[:MAX_CLASSES])
    return names if classes == tuple(range(len(classes))) else ()


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether a value out of JSON is a whole number from ``low`` to ``high``; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_name(value: Any) -> bool:
    """Whether a value out of JSON is a text that can be shown, and neither empty nor endless."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and printable(value) == value


def printable(text: str) -> str:
    """The text without the halves of characters that JSON and file names can hold, but no answer to a browser."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(is_whole(side, 0, MAX_SIDE) for side in value)


def counted(reasons: Iterable[str], most: int = 5) -> list[str]:
    """The first few of many sentences, and how many more there are."""
    every = list(reasons)
    more = len(every) - most
    return every if more <= 0 else [*every[:most], f"And {more} more of this kind."]
