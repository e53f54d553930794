"""The Lightning callbacks: the only place that knows Lightning's hooks. Wiring, no science."""

from lightning_unitrole.callbacks.monitor import UnitRoleMonitor
from lightning_unitrole.callbacks.pruning import UnitPruning

__all__ = ["UnitPruning", "UnitRoleMonitor"]
