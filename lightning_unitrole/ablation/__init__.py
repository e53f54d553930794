"""Cumulative ablation for any ``nn.Module``."""

from lightning_unitrole.ablation.curves import ablation_curves, cumulative_ablation
from lightning_unitrole.ablation.engine import AblationEngine, AblationRequest
from lightning_unitrole.ablation.points import coarse_points, refined_points
from lightning_unitrole.ablation.scores import ScoreFn, classification_score, first_tensor
from lightning_unitrole.ablation.verification import Replay

__all__ = [
    "AblationEngine",
    "AblationRequest",
    "Replay",
    "ScoreFn",
    "ablation_curves",
    "classification_score",
    "coarse_points",
    "cumulative_ablation",
    "first_tensor",
    "refined_points",
]
