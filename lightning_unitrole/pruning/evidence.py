"""What pruning needs to know of each layer: a ranking of its units, and what ablating them in that order does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unitrole.ablation import AblationRequest
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.data.sample import Sample
from lightning_unitrole.ranking.criteria import Criterion, rank
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.layer import LayerReport


@dataclass(frozen=True)
class LayerEvidence:
    """What was measured of the units of a layer.

    Attributes:
        name: the layer.
        order: ``[U]`` int64, units from the most to the least effective, over all classes.
        curve: ablation of the least effective first, on validation images; None if it was not measured.
        roles: ``[C, U]`` uint8, see :class:`~lightning_unitrole.reports.layer.LayerReport`; None if they were not
            measured.
    """

    name: str
    order: Tensor
    curve: AblationCurve | None = None
    roles: Tensor | None = None

    @classmethod
    def of(cls, layer: LayerReport) -> LayerEvidence:
        """What a report says."""
        curve = layer.val.curves.get("least_first")
        return cls(layer.name, layer.val.overall_order, curve, layer.roles if layer.roles.numel() else None)


def gather_evidence(
    session: AnalysisSession, sample: Sample, criteria: Sequence[str | Criterion]
) -> list[LayerEvidence]:
    """Rank the units of each layer and ablate the least effective first.

    Args:
        session: the analysis of the network.
        sample: the images.
        criteria: how to rank; of several, each layer takes the one whose least effective units cost least
            accuracy, that is the largest area under the ablation curve.
    """
    found = []
    with torch.inference_mode(False):
        measured = session.observer.measure(sample, criteria, description="Unit pruning: recording")
        with session.runner.progress(len(session.layers), "Unit pruning: ablation") as advance:
            for layer in session.layers:
                orders = [rank(criterion, measured[layer.name].statistics).overall for criterion in criteria]
                curves: dict[int, AblationCurve] = {}
                if session.options.ablation_points:
                    requests = {index: AblationRequest(order.flip(0)) for index, order in enumerate(orders)}
                    curves = session.curves(layer).measure(requests, sample)
                best = max(curves, key=lambda index: curves[index].area, default=0)
                found.append(LayerEvidence(layer.name, orders[best], curves.get(best)))
                advance()
    return found
