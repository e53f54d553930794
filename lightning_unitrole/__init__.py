"""Watch what each unit of a CNN is good for while it trains, and prune the useless ones.

Names are loaded when they are first used, so that importing the package, or a part of it, stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_unitrole.ablation import cumulative_ablation as cumulative_ablation
    from lightning_unitrole.analysis.functions import analyze as analyze
    from lightning_unitrole.analysis.functions import compare_criteria as compare_criteria
    from lightning_unitrole.callbacks.monitor import UnitRoleMonitor as UnitRoleMonitor
    from lightning_unitrole.callbacks.pruning import UnitPruning as UnitPruning
    from lightning_unitrole.loggers.tensorboard import ReportLogger as ReportLogger
    from lightning_unitrole.pruning.history import load_pruned as load_pruned
    from lightning_unitrole.ranking.entropy import FeatureEntropy as FeatureEntropy
    from lightning_unitrole.ranking.entropy import feature_entropy as feature_entropy
    from lightning_unitrole.reports.curves import AblationCurve as AblationCurve
    from lightning_unitrole.reports.report import UnitReport as UnitReport
    from lightning_unitrole.reports.roles import UnitRole as UnitRole
    from lightning_unitrole.topology import betti_curve as betti_curve
    from lightning_unitrole.topology import birth_points as birth_points

__version__ = "0.2.0"

_DEFINED_IN = {
    "AblationCurve": "lightning_unitrole.reports.curves",
    "FeatureEntropy": "lightning_unitrole.ranking.entropy",
    "ReportLogger": "lightning_unitrole.loggers.tensorboard",
    "UnitPruning": "lightning_unitrole.callbacks.pruning",
    "UnitReport": "lightning_unitrole.reports.report",
    "UnitRole": "lightning_unitrole.reports.roles",
    "UnitRoleMonitor": "lightning_unitrole.callbacks.monitor",
    "analyze": "lightning_unitrole.analysis.functions",
    "betti_curve": "lightning_unitrole.topology",
    "birth_points": "lightning_unitrole.topology",
    "compare_criteria": "lightning_unitrole.analysis.functions",
    "cumulative_ablation": "lightning_unitrole.ablation",
    "feature_entropy": "lightning_unitrole.ranking.entropy",
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
