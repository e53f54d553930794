"""Watch what each unit of a CNN is good for while it trains, and prune the useless ones.

Names are loaded when they are first used, so that importing the package, or a part of it, stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_unitrole.ablation import cumulative_ablation as cumulative_ablation
    from lightning_unitrole.analysis import analyze as analyze
    from lightning_unitrole.callbacks import UnitPruning as UnitPruning
    from lightning_unitrole.callbacks import UnitRoleMonitor as UnitRoleMonitor
    from lightning_unitrole.comparison import compare_criteria as compare_criteria
    from lightning_unitrole.entropy import FeatureEntropy as FeatureEntropy
    from lightning_unitrole.entropy import feature_entropy as feature_entropy
    from lightning_unitrole.pruning.history import load_pruned as load_pruned
    from lightning_unitrole.results import AblationCurve as AblationCurve
    from lightning_unitrole.results import UnitReport as UnitReport
    from lightning_unitrole.results import UnitRole as UnitRole
    from lightning_unitrole.topology import betti_curve as betti_curve
    from lightning_unitrole.topology import birth_points as birth_points

__version__ = "0.1.0"

_DEFINED_IN = {
    "AblationCurve": "lightning_unitrole.results",
    "FeatureEntropy": "lightning_unitrole.entropy",
    "UnitPruning": "lightning_unitrole.callbacks",
    "UnitReport": "lightning_unitrole.results",
    "UnitRole": "lightning_unitrole.results",
    "UnitRoleMonitor": "lightning_unitrole.callbacks",
    "analyze": "lightning_unitrole.analysis",
    "betti_curve": "lightning_unitrole.topology",
    "birth_points": "lightning_unitrole.topology",
    "compare_criteria": "lightning_unitrole.comparison",
    "cumulative_ablation": "lightning_unitrole.ablation",
    "feature_entropy": "lightning_unitrole.entropy",
    "load_pruned": "lightning_unitrole.pruning.history",
}
__all__ = [*_DEFINED_IN]


def __getattr__(name: str) -> Any:
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_DEFINED_IN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_DEFINED_IN])
