"""Cumulative ablation for any ``nn.Module``."""

from lightning_unitrole.ablation.curves import cumulative_ablation, follow_curves, measure_curves
from lightning_unitrole.ablation.engine import AblationEngine, AblationRequest
from lightning_unitrole.ablation.points import coarse_points, even_points, falling_points, refined_points
from lightning_unitrole.ablation.scores import ScoreFn, classification_score, first_tensor
from lightning_unitrole.ablation.verification import Replay

__all__ = [
    "AblationEngine",
    "AblationRequest",
    "Replay",
    "ScoreFn",
    "classification_score",
    "coarse_points",
    "cumulative_ablation",
    "even_points",
    "falling_points",
    "first_tensor",
    "follow_curves",
    "measure_curves",
    "refined_points",
]
