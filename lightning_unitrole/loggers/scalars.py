"""From a report to scalars by key.

Keys, with ``<layer>`` the name of a convolution and ``<split>`` ``train`` or ``val``. What stands before the first
slash is the group under which TensorBoard shows a measure of all layers:

=====================================================  =====================================================
``unitrole_role_share/<layer>/both``                   share of the (class, unit) pairs, 0 to 1
``unitrole_role_share/<layer>/train_only``             the same
``unitrole_role_share/<layer>/val_only``               the same
``unitrole_role_share/<layer>/neither``                the same
``unitrole_role_stability/<layer>``                    share of the pairs with the role of the report before, 0 to 1
``unitrole_role_agreement/<layer>``                    agreement of "helps" between halves of the images, kappa
``unitrole_differing_share/<layer>``                   share of the pairs that contribute differently on training and on
                                                       validation images, 0 to 1: the sign of overfitting
``unitrole_unit_share/<layer>/<effect>``               share of the units that, over all classes, ``helps`` or
                                                       ``hurts``, or with ``no_effect`` on any class, 0 to 1
``unitrole_removable/<layer>``                         number of units that can go at no cost, as measured
``unitrole_feature_entropy/<layer>/<split>``           mean over classes and units, nats
``unitrole_selective_rate/<layer>/<split>``            mean share of images without a birth point, 0 to 1
``unitrole_ineffectiveness/<layer>/<split>``           mean over classes and units, nats
``unitrole_rank_agreement/<layer>/<split>``            rank correlation of the criterion between halves of the images
``unitrole_ranking_gap/<layer>/<split>``               area between the ablation curves, -1 to 1
``unitrole_contribution_gap/<layer>``                  area between the curve that switches off what contributes
                                                       least first and random ones, -1 to 1
=====================================================  =====================================================

Means leave out units without any birth point. A value that does not exist, such as a role share without ablation, is
not logged. ``<layer>`` is ``<name>/<layer>`` for a monitor that was given a name. In ``trainer.callback_metrics`` each
has its name of 0.1 too, ``unitrole/<layer>/<measure>`` and what follows, so that callbacks that monitor one go on
working until 0.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

from lightning_unitrole.reports.effects import HELPS, HURTS
from lightning_unitrole.reports.layer import SPLITS, LayerReport, SplitReport
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import UnitRole, role_transitions, stability

Value = TypeVar("Value")

PREFIX = "unitrole"
_FORMER_KEY = re.compile(
    PREFIX + r"/(?P<layer>.+)/(?P<measure>role_share|role_stability|ranking_gap|feature_entropy|selective_rate|"
    r"ineffectiveness)(?P<detail>/[a-z_]+)?"
)
_SHARES = (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)


def report_scalars(
    report: UnitReport, *, before: Mapping[str, Tensor] | None = None, former: bool = False
) -> dict[str, float]:
    """The scalars of a report by key; see the head of this module for their meaning and units.

    Args:
        report: the report.
        before: ``[C, U]`` roles of the report before it, by layer, to tell how stable they are.
        former: under the names of earlier versions as well.
    """
    scalars = {}
    for layer, measure, detail, value in _scalars(report, before or {}):
        if math.isfinite(value):
            scalars[scalar_key(measure, layer) + detail] = value
            if former:
                scalars[f"{PREFIX}/{layer}/{measure}{detail}"] = value
    return scalars


def under_name(name: str, by_layer: Mapping[str, Value]) -> dict[str, Value]:
    """The same by layer, for a monitor that has a name: ``name/<layer>``."""
    return {f"{name}/{layer}" if name else layer: value for layer, value in by_layer.items()}


def scalar_key(measure: str, layer: str) -> str:
    """Where something about a layer is logged, in one group with the same of all others.

    Example:
        >>> scalar_key("ranking_gap", "layer1.0.conv2")
        'unitrole_ranking_gap/layer1.0.conv2'
    """
    return f"{PREFIX}_{measure}/{layer}"


def present_key(key: str) -> str | None:
    """The key that stands for one of earlier versions; None for any other key.

    Example:
        >>> present_key("unitrole/layer1.0.conv2/ranking_gap/val")
        'unitrole_ranking_gap/layer1.0.conv2/val'
    """
    found = _FORMER_KEY.fullmatch(key)
    return None if found is None else scalar_key(found["measure"], found["layer"]) + (found["detail"] or "")


def _scalars(report: UnitReport, before: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str, float]]:
    """Layer, measure, what else is in the key, and value."""
    for name, layer in report.layers.items():
        for split in SPLITS:
            measured: SplitReport = getattr(layer, split)
            for measure in ("feature_entropy", "selective_rate", "ineffectiveness"):
                values = finite_values(getattr(measured, measure.removeprefix("feature_")))
                if len(values):
                    yield name, measure, f"/{split}", float(values.mean())
            yield name, "ranking_gap", f"/{split}", measured.ranking_gap
            yield name, "rank_agreement", f"/{split}", measured.rank_agreement
        for role, share in layer.role_shares.items():
            yield name, "role_share", f"/{role.name.lower()}", share
        yield from ((name, *each) for each in _effects(layer))
    for name, change in role_changes(before, report).items():
        yield name, "role_stability", "", stability(change)


def _effects(layer: LayerReport) -> Iterator[tuple[str, str, float]]:
    yield "role_agreement", "", layer.agreement
    yield "differing_share", "", layer.differing_share
    yield "contribution_gap", "", layer.val.contribution_gap
    if layer.check is not None:
        yield "removable", "", float(len(layer.removable))
    if layer.summary_effects is not None:
        for effect, key in ((HELPS, "helps"), (HURTS, "hurts")):
            yield "unit_share", f"/{key}", layer.summary_effects.share(effect)
        yield "unit_share", "/no_effect", float(layer.without_effect.double().mean())


def scalar_layout(layers: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Layout of TensorBoard's "Custom scalars" dashboard: one chart a layer with its four role shares."""
    return {
        "Unit roles": {
            layer: ["Multiline", [f"{scalar_key('role_share', layer)}/{role.name.lower()}" for role in _SHARES]]
            for layer in layers
        }
    }


def role_changes(before: Mapping[str, Tensor], after: UnitReport) -> dict[str, Tensor]:
    """``[4, 4]`` role transitions of each layer that has roles, and as many units, in both reports.

    Args:
        before: ``[C, U]`` roles of the earlier report, by layer.
        after: the later report.
    """
    return {
        name: role_transitions(before[name], layer.roles)
        for name, layer in after.layers.items()
        if name in before and layer.role_shares and before[name].shape == layer.roles.shape
    }


def finite_values(values: Tensor) -> Tensor:
    """The finite values of a tensor, flat."""
    return values[values.isfinite()].flatten()
