"""What TensorBoard loads when it starts: as little as can be, and never an exception.

A fault here would keep TensorBoard from starting at all, for every other log as well.
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from tensorboard.plugins import base_plugin

from lightning_unitrole.tensorboard_plugin.schema import PLUGIN_NAME

if TYPE_CHECKING:
    from lightning_unitrole.tensorboard_plugin.plugin import UnitRolesPlugin

logger = logging.getLogger(__name__)


class UnitRolesLoader(base_plugin.TBLoader):  # type: ignore[misc]  # TensorBoard has no types
    """Loads the "Unit roles" tab."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Ask for every step: TensorBoard would keep 10 or 100 of them, and a history of roles would have holes."""
        samples = getattr(flags, "samples_per_plugin", None)
        if isinstance(samples, dict):
            samples.setdefault(PLUGIN_NAME, 0)

    def load(self, context: base_plugin.TBContext) -> UnitRolesPlugin | None:
        """The plugin, or None, and a message in TensorBoard's log, where it cannot be loaded."""
        try:
            from lightning_unitrole.tensorboard_plugin.plugin import UnitRolesPlugin

            return UnitRolesPlugin(context)
        except Exception as error:
            logger.warning("The tab 'Unit roles' is not available: %s", error)
            return None
