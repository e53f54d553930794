"""Names that the writer of the logs and the reader in the plugin share. Imports nothing heavy."""

from __future__ import annotations

PLUGIN_NAME = "unit_roles"
TAB_NAME = "Unit roles"
FORMAT_VERSION = 1

OVERVIEW_TAG = f"{PLUGIN_NAME}/overview"

OVERVIEW_COLUMNS = (
    "present",  # units that are still there
    "units_both",  # how many of them have this role in most classes
    "units_train_only",
    "units_val_only",
    "units_neither",
    "units_undecided",
    "pairs_both",  # share of the (class, unit) pairs with this role
    "pairs_train_only",
    "pairs_val_only",
    "pairs_neither",
    "pairs_undecided",
    "units_changed",  # share of the units whose role in most classes differs from that of the report before
    "pairs_changed",  # share of the (class, unit) pairs whose role differs
    "entropy_q25",  # nats, over the units, validation images
    "entropy_q50",
    "entropy_q75",
    "selective_rate",  # mean over the units, validation images
    "ranking_gap",
    "random_gap",
    "turning_train",  # turning points as a share of the units that are present
    "turning_val",
)
"""What each layer's row in the overview holds; NaN where not known."""

MEASURES = ("entropy_val", "entropy_train", "selective_val", "selective_train", "useful")
"""Float16 measures of each unit that a layer's state holds, each a mean over the classes."""


def layer_tag(layer: str, part: str) -> str:
    """Tag of one part (``state``, ``classes`` or ``curves``) of one layer's data."""
    return f"{PLUGIN_NAME}/{layer}/{part}"
