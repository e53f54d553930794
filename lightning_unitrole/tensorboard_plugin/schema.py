"""Names that the writer of the logs and the reader in the plugin share. Imports nothing heavy."""

from __future__ import annotations

PLUGIN_NAME = "unit_roles"
TAB_NAME = "Unit roles"
FORMAT_VERSION = 1

OVERVIEW_TAG = f"{PLUGIN_NAME}/overview"
THUMBNAILS_TAG = f"{PLUGIN_NAME}/thumbnails"
PRUNING_TAG = f"{PLUGIN_NAME}/pruning"

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
    "turning_train",  # turning points as a share of the units that are present; only with curves by class
    "turning_val",
    # Logs of earlier versions end here.
    "images",  # validation images of each class, at most
    "units_help",  # how many units help over all classes, on validation images
    "units_no_effect",
    "units_hurt",
    "units_help_no_class",
    "units_removable",  # 0 where the network was worse without the units that have no effect
    "differing_share",  # share of the (class, unit) pairs that contribute differently on either side
    "agreement",  # Cohen's kappa of "helps" between halves of the images
    "rank_agreement",  # rank correlation of the criterion between halves of the validation images
    "ordered_classes",  # share of the classes in which the criterion tells any two units apart
    "contribution_gap",
    "margin_train",  # nats, sum over the units of their mean contributions
    "margin_val",
    "check_images",  # images of the check that switches groups of units off
    "check_accuracy",  # accuracy of the network as it is
    "check_removed_accuracy",  # without the units that have no effect
    "check_helpers_accuracy",  # with the units that help alone
    "check_random_accuracy",  # without as many random units, mean over the draws
    "macs",  # multiply-accumulate operations of the layer's convolution for one image
)
"""What each layer's row in the overview holds; NaN where not known or not measured."""

MEASURES = ("entropy_val", "entropy_train", "selective_val", "selective_train", "useful")
"""Float16 measures of each unit that a layer's state holds, each a mean over the classes."""

CONTRIBUTIONS = ("contribution_train", "contribution_val", "error_train", "error_val")
"""Float16 contribution of each unit in nats and its standard error: in a layer's state over all classes, in its part
``contributions`` by class. Not there where contributions were not measured."""

STRONGEST = 20
"""Contributions of a unit are logged for so many classes; of more classes for those to which it contributes most."""

EFFECTS = ("effect_train", "effect_val")
"""Effect of each unit over all classes, uint8: 0 hurts, 1 has no measurable effect, 2 helps, 255 was not tested."""
UNKNOWN_EFFECT = 255


PARTS = ("state", "classes", "contributions", "curves", "examples")
"""What is logged of each layer, where it was measured."""

EXAMPLES = {"images": "f8", "values": "f2", "classes": "u2"}
"""Of each unit ``[splits, kinds, images, units]``: names of thumbnails, the values that they were chosen by, and the
classes of the images. Splits are training and validation, kinds contribution and activation."""
NO_CLASS = 65535
MAX_NAMES = 1000
"""Names of so many classes are logged."""


NETWORK_COLUMNS = ("parameters", "macs", "latency", "batch", "accuracy")
"""What is logged of a network before pruning and after it."""
CUT_COLUMNS = (
    "epoch",
    "global_step",
    "parameters",
    "macs",
    "accuracy_before",
    "accuracy_after",
    "predicted_accuracy",
    "predicted_loss",
)
"""What is logged of each time that units were pruned; NaN where not measured."""


def layer_tag(layer: str, part: str) -> str:
    """Tag of one of the :data:`PARTS` of one layer's data."""
    return f"{PLUGIN_NAME}/{layer}/{part}"
