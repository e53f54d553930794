"""From a report to scalars by key.

Keys, with ``<layer>`` the name of a convolution and ``<split>`` ``train`` or ``val``:

=====================================================  =====================================================
``unitrole/<layer>/role_share/both``                   share of the (class, unit) pairs, 0 to 1
``unitrole/<layer>/role_share/train_only``             the same
``unitrole/<layer>/role_share/val_only``               the same
``unitrole/<layer>/role_share/neither``                the same
``unitrole/<layer>/role_stability``                    share of the pairs with the role of the report before, 0 to 1
``unitrole/<layer>/role_agreement``                    agreement of "helps" between halves of the images, kappa
``unitrole/<layer>/differing_share``                   share of the pairs that contribute differently on training and on
                                                       validation images, 0 to 1: the sign of overfitting
``unitrole/<layer>/unit_share/<effect>``               share of the units that, over all classes, ``helps`` or
                                                       ``hurts``, or with ``no_effect`` on any class, 0 to 1
``unitrole/<layer>/removable``                         number of units that can go at no cost, as measured
``unitrole/<layer>/feature_entropy/<split>``           mean over classes and units, nats
``unitrole/<layer>/selective_rate/<split>``            mean share of images without a birth point, 0 to 1
``unitrole/<layer>/ineffectiveness/<split>``           mean over classes and units, nats
``unitrole/<layer>/rank_agreement/<split>``            rank correlation of the criterion between halves of the images
``unitrole/<layer>/ranking_gap/<split>``               area between the ablation curves, -1 to 1
``unitrole/<layer>/contribution_gap``                  area between the curve that switches off what contributes
                                                       least first and random ones, -1 to 1
=====================================================  =====================================================

Means leave out units without any birth point. A value that does not exist, such as a role share without ablation, is
not logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_unitrole.reports.effects import HELPS, HURTS
from lightning_unitrole.reports.layer import SPLITS, LayerReport, SplitReport
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import UnitRole, role_transitions, stability

PREFIX = "unitrole"
_SHARES = (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)


def report_scalars(report: UnitReport, *, before: Mapping[str, Tensor] | None = None) -> dict[str, float]:
    """The scalars of a report by key; see the head of this module for their meaning and units.

    Args:
        report: the report.
        before: ``[C, U]`` roles of the report before it, by layer, to tell how stable they are.
    """
    scalars = dict(_scalars(report))
    changes = role_changes(before or {}, report)
    scalars |= {f"{PREFIX}/{name}/role_stability": stability(change) for name, change in changes.items()}
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def _scalars(report: UnitReport) -> Iterator[tuple[str, float]]:
    for name, layer in report.layers.items():
        for split in SPLITS:
            measured: SplitReport = getattr(layer, split)
            for measure in ("feature_entropy", "selective_rate", "ineffectiveness"):
                values = finite_values(getattr(measured, measure.removeprefix("feature_")))
                if len(values):
                    yield f"{PREFIX}/{name}/{measure}/{split}", float(values.mean())
            yield f"{PREFIX}/{name}/ranking_gap/{split}", measured.ranking_gap
            yield f"{PREFIX}/{name}/rank_agreement/{split}", measured.rank_agreement
        for role, share in layer.role_shares.items():
            yield f"{PREFIX}/{name}/role_share/{role.name.lower()}", share
        yield from ((f"{PREFIX}/{name}/{key}", value) for key, value in _effects(layer))


def _effects(layer: LayerReport) -> Iterator[tuple[str, float]]:
    yield "role_agreement", layer.agreement
    yield "differing_share", layer.differing_share
    yield "contribution_gap", layer.val.contribution_gap
    if layer.check is not None:
        yield "removable", float(len(layer.removable))
    if layer.summary_effects is not None:
        for effect, key in ((HELPS, "helps"), (HURTS, "hurts")):
            yield f"unit_share/{key}", layer.summary_effects.share(effect)
        yield "unit_share/no_effect", float(layer.without_effect.double().mean())


def scalar_layout(layers: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Layout of TensorBoard's "Custom scalars" dashboard: one chart a layer with its four role shares."""
    return {
        "Unit roles": {
            layer: ["Multiline", [f"{PREFIX}/{layer}/role_share/{role.name.lower()}" for role in _SHARES]]
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
