"""From a :class:`~lightning_unitrole.reports.report.UnitReport` to the compact tensors that the "Unit roles" tab reads.

Each report becomes one TensorBoard event at one step:

* ``unit_roles/overview``: a ``[layers, columns]`` float32 table, see :data:`~.schema.OVERVIEW_COLUMNS`;
* ``unit_roles/<layer>/state``: role over all classes (uint8), rank (uint16) and the float16 measures of each unit; its
  effect (uint8), and its contribution and standard error (float16), where these were measured;
* ``unit_roles/<layer>/classes``: role (uint8) of each unit for a bounded number of classes; only with ablation;
* ``unit_roles/<layer>/contributions``: its contribution and standard error (float16) for each class, where measured;
  of many classes for those that it contributes most to, in either direction;
* ``unit_roles/<layer>/curves``: the ablation curves, for all classes and for each of those classes; only with ablation;
* ``unit_roles/<layer>/examples``: the images that each unit contributes most to and responds to most, by the names of
  their thumbnails, with its maps, and its twins; only where the report has them;
* ``unit_roles/thumbnails``: the pixels of those that were not logged before.

Every tensor is a deflated container (:mod:`.packing`) that names its epoch: a step can be told without its neighbours.
Units keep the index they had in the first report of the run, whatever is pruned later.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_unitrole.errors import DataError
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.effects import HURTS, UNTESTED
from lightning_unitrole.reports.layer import SPLITS, LayerReport, SplitReport
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.vocabulary import BOTH, NO_ROLE
from lightning_unitrole.tensorboard_plugin.columns import (
    contribution_arrays,
    finite_mean,
    half,
    mean_over_classes,
    overview_row,
    scatter,
)
from lightning_unitrole.tensorboard_plugin.examples import layer_examples, new_thumbnails, thumbnail_names
from lightning_unitrole.tensorboard_plugin.packing import Array, deflate, pack
from lightning_unitrole.tensorboard_plugin.schema import (
    FORMAT_VERSION,
    MAX_NAMES,
    MEASURES,
    OVERVIEW_COLUMNS,
    OVERVIEW_TAG,
    PLUGIN_NAME,
    THUMBNAILS_TAG,
    UNKNOWN_EFFECT,
    layer_tag,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

MAX_PAIRS = 1 << 20
"""Roles by class are logged for so many (class, unit) pairs of an analysis, about: a quarter of a megabyte."""
LEAST_CLASSES = 20
"""But for so many classes at least."""


@dataclass(frozen=True)
class PluginState:
    """What the first report of a run fixed, and what the next one is compared with.

    Attributes:
        layers: names of the layers, in the order in which the tab shows them.
        units: for each layer, its number of units before any pruning.
        map_sizes: for each layer, height and width of its maps.
        classes: indices of the classes whose roles are logged one by one.
        class_names: names of all classes, as far as the tab takes them.
        num_classes: number of all classes.
        criterion: name of the criterion that ranked the units.
        step: step of the last report; the next one needs a larger step.
        roles: for each layer, ``[1 + all classes, units]`` role codes of the last report: the first row holds the role
            in most classes, then comes one row a class.
        left_out: layers that turned up later and are not logged, see :func:`write_report`.
        thumbnails: bytes of each thumbnail that was logged, by its name.
    """

    layers: tuple[str, ...]
    units: Mapping[str, int]
    map_sizes: Mapping[str, tuple[int, int]]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    num_classes: int
    criterion: str
    step: int = -1
    roles: Mapping[str, Array] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    thumbnails: Mapping[float, int] = field(default_factory=dict)


def write_report(
    writer: SummaryWriter,
    report: UnitReport,
    *,
    step: int,
    known: PluginState | None = None,
    kept: Mapping[str, Sequence[int] | Tensor] | None = None,
    original_units: Mapping[str, int] | None = None,
    max_classes: int | None = None,
) -> PluginState:
    """Log one report for the "Unit roles" tab and flush, so that a running TensorBoard sees it.

    Args:
        writer: where to log; a logger's ``experiment`` on rank zero.
        report: the report.
        step: step at which to log it. Steps must grow; a report at the step of the last one is not logged again.
        known: what the call before returned; None for the first report of a run.
        kept: for each pruned layer, the original indices of the units it still has, in their present order. A layer
            that is not in it has all its units.
        original_units: for each pruned layer, how many units it had at first. Needed only where ``kept`` names a layer
            that no report showed whole, as after a restart.
        max_classes: for how many classes the role of each unit is logged; by default as many as keep an analysis small.
            Only the first report is asked.

    Returns:
        What to hand in as ``known`` with the next report.

    Raises:
        DataError: if ``step`` is smaller than that of the last report, or ``kept`` does not fit the report.

    A layer that is not in the first report is left out, with one warning: TensorBoard keeps the index of the layers
    that it saw first.
    """
    if known is None:
        known = _first_state(report, kept or {}, original_units or {}, max_classes)
    elif step < known.step:
        raise DataError(
            f"The report at step {step} comes after one at step {known.step}; TensorBoard needs steps that grow. "
            "Log a new training to a new directory."
        )
    elif step == known.step:
        return known
    known = _leave_out_new_layers(report, known)

    slots = {name: _slots(report.layers[name], known, kept or {}) for name in known.layers if name in report.layers}
    roles = {name: scatter(_all_roles(report.layers[name]), slots[name], known.units[name]) for name in slots}
    info = {"format": FORMAT_VERSION, "epoch": report.epoch}
    contents: dict[str, bytes] = {OVERVIEW_TAG: _overview(report, known, roles, info)}
    names = {split: thumbnail_names(found) for split, found in report.examples.items()}
    thumbnails, pixels = new_thumbnails(report.examples, names, known.thumbnails)
    if pixels:
        contents[THUMBNAILS_TAG] = pack(info, pixels)
    for name in slots:
        layer_info = {**info, "layer": name, "units": known.units[name]}
        layer = report.layers[name]
        contents[layer_tag(name, "state")] = pack(layer_info, _state(layer, slots[name], roles[name][0]))
        if layer.roles.numel():
            by_class = roles[name][1:][list(known.classes)]
            contents[layer_tag(name, "classes")] = pack(layer_info, {"roles": by_class})
        measured = contribution_arrays(layer, slots[name], known.units[name], known.num_classes)
        if measured:
            contents[layer_tag(name, "contributions")] = pack(layer_info, measured)
        described, arrays = _curves(layer, known.classes)
        if described:
            contents[layer_tag(name, "curves")] = pack({**layer_info, "curves": described}, arrays)
        if report.examples:
            facts, arrays = layer_examples(report.examples, names, name, slots[name], known.units[name])
            contents[layer_tag(name, "examples")] = pack({**layer_info, **facts}, arrays)
    write_contents(writer, contents, _metadata(known), step)
    return replace(known, step=step, roles={**known.roles, **roles}, thumbnails=thumbnails)


def _first_state(
    report: UnitReport,
    kept: Mapping[str, Sequence[int] | Tensor],
    original_units: Mapping[str, int],
    max_classes: int | None,
) -> PluginState:
    units = {name: original_units.get(name, layer.num_units) for name, layer in report.layers.items()}
    for name in kept:
        if name in units and name not in original_units:
            raise DataError(
                f"Layer {name!r} is pruned in the first report of this run; pass original_units={{{name!r}: ...}}, its "
                "number of units before pruning."
            )
    if max_classes is None:
        max_classes = min(MAX_NAMES, max(LEAST_CLASSES, MAX_PAIRS // max(1, sum(units.values()))))
    classes = tuple(range(min(max_classes, len(report.class_names))))
    return PluginState(
        layers=tuple(report.layers),
        units=units,
        map_sizes={name: layer.map_size for name, layer in report.layers.items()},
        classes=classes,
        class_names=tuple(report.class_names[:MAX_NAMES]),
        num_classes=len(report.class_names),
        criterion=report.criterion,
    )


def _leave_out_new_layers(report: UnitReport, known: PluginState) -> PluginState:
    new = frozenset(report.layers) - frozenset(known.layers)
    for name in sorted(new - known.left_out):
        warnings.warn(
            f"Layer {name!r} was not in the first report of this run, so the tab 'Unit roles' leaves it out. Log to a "
            "new directory to see it.",
            stacklevel=3,
        )
    return replace(known, left_out=known.left_out | new)


def _slots(layer: LayerReport, known: PluginState, kept: Mapping[str, Sequence[int] | Tensor]) -> Array:
    """Original index of each unit that the layer has now, ``[U]``."""
    original = known.units[layer.name]
    if layer.name not in kept:
        if layer.num_units != original:
            raise DataError(
                f"Layer {layer.name!r} has {layer.num_units} units; the first report of this run had {original}. Pass "
                f"kept={{{layer.name!r}: ...}}, the original indices of the units that it has now."
            )
        return np.arange(original)
    slots = np.asarray(kept[layer.name], dtype=np.int64)
    if (
        len(slots) != layer.num_units
        or len(np.unique(slots)) != len(slots)
        or ((slots < 0) | (slots >= original)).any()
    ):
        raise DataError(
            f"kept[{layer.name!r}] holds {slots.tolist()}; expected {layer.num_units} different indices, one for each "
            f"unit that the layer has now, each at least 0 and less than {original}."
        )
    return slots


def _all_roles(layer: LayerReport) -> Array:
    """Role codes ``[1 + classes, U]`` uint8: over all classes in the first row, then class by class."""
    if layer.summary.numel() == 0:
        return np.full((1, layer.num_units), NO_ROLE, np.uint8)
    return np.concatenate([layer.summary.cpu().numpy()[None], layer.roles.cpu().numpy()]).astype(np.uint8)


def _state(layer: LayerReport, slots: Array, roles: Array) -> dict[str, Array]:
    units = len(roles)
    by_class = layer.roles.cpu().numpy()
    useful = np.where(by_class > BOTH, np.nan, by_class == BOTH)
    measures = {
        "entropy_val": mean_over_classes(layer.val.entropy),
        "entropy_train": mean_over_classes(layer.train.entropy),
        "selective_val": mean_over_classes(layer.val.selective_rate),
        "selective_train": mean_over_classes(layer.train.selective_rate),
        "useful": finite_mean(useful),
    }
    rank = np.empty(layer.num_units, np.uint16)
    rank[layer.val.overall_order.cpu().numpy()] = np.arange(layer.num_units)
    state = {"roles": roles, "rank": scatter(rank, slots, units, np.iinfo(np.uint16).max)}
    for name in MEASURES:
        state[name] = scatter(half(measures[name]), slots, units, np.nan)
    for split in SPLITS:
        measured: SplitReport = getattr(layer, split)
        if measured.contributions is not None:
            overall = measured.contributions.overall()
            state[f"contribution_{split}"] = scatter(half(overall.mean.numpy()), slots, units, np.nan)
            state[f"error_{split}"] = scatter(half(overall.standard_error.numpy()), slots, units, np.nan)
        if layer.summary_effects is not None:
            effect = getattr(layer.summary_effects, split).numpy()
            codes = np.where(effect == UNTESTED, UNKNOWN_EFFECT, effect - HURTS).astype(np.uint8)
            state[f"effect_{split}"] = scatter(codes, slots, units, UNKNOWN_EFFECT)
    return state


def _overview(report: UnitReport, known: PluginState, roles: Mapping[str, Array], info: Mapping[str, Any]) -> bytes:
    table = np.full((len(known.layers), len(OVERVIEW_COLUMNS)), np.nan, np.float32)
    for row, name in zip(table, known.layers, strict=True):
        if name in roles:
            values = overview_row(report.layers[name], roles[name], known.roles.get(name))
            row[:] = [values.get(column, np.nan) for column in OVERVIEW_COLUMNS]
    return pack({**info, "layers": list(known.layers), "columns": list(OVERVIEW_COLUMNS)}, {"table": table})


def _curves(layer: LayerReport, classes: Sequence[int]) -> tuple[list[dict[str, Any]], dict[str, Array]]:
    """What each curve is, and the points of all of them, one curve behind the other."""
    chosen: list[tuple[dict[str, Any], AblationCurve]] = []
    for split in SPLITS:
        measured: SplitReport = getattr(layer, split)
        chosen += [({"split": split, "class": None, "order": order}, curve) for order, curve in measured.curves.items()]
        for klass in classes:
            curve = measured.class_curves[klass] if klass < len(measured.class_curves) else None
            if curve is not None:
                chosen.append(({"split": split, "class": klass, "order": "least_first"}, curve))
    described = [
        {
            **what,
            "points": len(curve.ablated),
            "turning": curve.turning_point,
            "turning_accuracy": curve.turning_point_by_accuracy,
        }
        for what, curve in chosen
    ]

    def points(name: str, dtype: type) -> Array:
        with np.errstate(over="ignore"):
            return np.concatenate([getattr(curve, name).cpu().numpy() for _, curve in chosen]).astype(dtype)

    if not chosen:
        return [], {}
    return described, {
        "ablated": points("ablated", np.uint32),
        "loss": points("loss", np.float32),
        "accuracy": points("accuracy", np.float16),
        "top5": points("top5", np.float16),
    }


def _metadata(known: PluginState) -> bytes:
    """What TensorBoard keeps from the first event: the index of layers and classes."""
    content = {
        "format": FORMAT_VERSION,
        "layers": [
            {"name": name, "units": known.units[name], "map_size": list(known.map_sizes[name])} for name in known.layers
        ],
        "classes": list(known.classes),
        "class_names": [known.class_names[index] for index in known.classes],
        "every_class": list(known.class_names),
        "num_classes": known.num_classes,
        "criterion": known.criterion,
    }
    return json.dumps(content).encode()


def write_contents(writer: SummaryWriter, contents: Mapping[str, bytes], metadata: bytes, step: int) -> None:
    """Write containers by their tags as one event, and flush.

    Args:
        writer: where to log.
        contents: containers, not deflated.
        metadata: what TensorBoard keeps beside the overview.
        step: step of the event.
    """
    # TensorBoard is slow to import, and who only analyses a model never logs.
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
    from tensorboard.compat.proto.types_pb2 import DT_UINT8

    values = []
    for tag, container in contents.items():
        content = deflate(container)
        about = SummaryMetadata(
            # The fast loader of TensorBoard drops tensors that name no data class.
            data_class=DATA_CLASS_TENSOR,
            plugin_data=SummaryMetadata.PluginData(
                plugin_name=PLUGIN_NAME, content=metadata if tag == OVERVIEW_TAG else b""
            ),
        )
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(content))])
        tensor = TensorProto(dtype=DT_UINT8, tensor_shape=shape, tensor_content=content)
        values.append(Summary.Value(tag=tag, metadata=about, tensor=tensor))
    writer._get_file_writer().add_summary(Summary(value=values), step)  # type: ignore[no-untyped-call]
    writer.flush()
