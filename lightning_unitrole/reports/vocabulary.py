"""What roles are called, what they mean and how they look, and what stands out in a report.

The one source for the console, the scalars, the figures and the TensorBoard tab. Beside verdicts it imports nothing but
the standard library, as they do, so that each of them can have it for free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_unitrole.reports.verdicts import RANKING_MARGIN, RELIABLE_AGREEMENT

NEITHER = 0
TRAIN_ONLY = 1
VAL_ONLY = 2
BOTH = 3
UNDECIDED = 253
REMOVED = 254
NO_ROLE = 255

NOTABLE_SHARE = 0.1
"""Share of the (class, unit) pairs that differ between the sides from which on a layer is said to memorise."""
NOTABLE_UNITS = 0.05
"""Share of the units of a layer that help no class from which on it is said to be wide."""

BACKGROUND: Mapping[str, str] = {"light": "#ffffff", "dark": "#1c1f23"}
"""What the colours of the roles are seen against in each theme."""


@dataclass(frozen=True)
class Role:
    """How one role is called, explained and drawn.

    Attributes:
        code: what stands for the role in an array of uint8.
        name: name in code and in keys of scalars.
        label: name for readers.
        meaning: one sentence for somebody who has not read the papers.
        light: colour ``#rrggbb`` on a light background.
        dark: colour on a dark background.
        fill: ``solid``; ``hatched``, in stripes of the colour on the background; or ``empty``, no mark at all, but
            a faint ground that needs an outline to be seen.
    """

    code: int
    name: str
    label: str
    meaning: str
    light: str
    dark: str
    fill: Literal["solid", "hatched", "empty"] = "solid"

    @property
    def matplotlib(self) -> str:
        """Colour in Matplotlib's figures, whose background is white; of the stripes where the role is hatched."""
        return self.light

    @property
    def patch(self) -> dict[str, Any]:
        """Arguments for a Matplotlib patch that looks like the role.

        Example:
            >>> ROLE_OF[UNDECIDED].patch["hatch"]
            '////'
        """
        if self.fill == "hatched":
            return {"facecolor": BACKGROUND["light"], "edgecolor": self.light, "hatch": "////", "linewidth": 0}
        return {"facecolor": self.light, "linewidth": 0}


# The solid colours come from a search: at least 3:1 against the background, and the smallest distance between any two
# of them as large as it gets for people with normal vision, protanopia, deuteranopia and tritanopia alike. "Validation
# only" is the light relative of "Both"; "Training only", which does not generalise, is the warm one.
ROLES = (
    Role(
        BOTH,
        "BOTH",
        "Both",
        "The unit measurably helps the network's answers on training images and on validation images.",
        light="#1a3659",
        dark="#0593e6",
    ),
    Role(
        VAL_ONLY,
        "VAL_ONLY",
        "Validation only",
        "The unit measurably helps the network's answers on validation images, but not on training images.",
        light="#396781",
        dark="#a5e7f8",
    ),
    Role(
        TRAIN_ONLY,
        "TRAIN_ONLY",
        "Training only",
        "The unit measurably helps the network's answers on training images, but not on validation images, "
        "as a unit does that has memorised.",
        light="#f26011",
        dark="#d98a2e",
    ),
    Role(
        NEITHER,
        "NEITHER",
        "Neither",
        "No help from the unit can be measured, neither on training images nor on validation images.",
        light="#8b9398",
        dark="#6c6f73",
    ),
    Role(
        UNDECIDED,
        "UNDECIDED",
        "Undecided",
        "There are not enough images, or there is not enough information in them, to tell what the unit is good for.",
        light="#8a3a8f",
        dark="#d9a6e6",
        fill="hatched",
    ),
    Role(
        REMOVED,
        "REMOVED",
        "Removed",
        "The unit has been pruned away and is no longer part of the network.",
        light=BACKGROUND["light"],
        dark=BACKGROUND["dark"],
        fill="empty",
    ),
    Role(
        NO_ROLE,
        "NO_ROLE",
        "No role",
        "No role was looked for: units were not switched off, or the class has no images on one of the two sides.",
        light="#efe9f5",
        dark="#2c2735",
        fill="empty",
    ),
)
"""Every role, from the bottom of a stack of shares to its top."""

ROLE_OF: Mapping[int, Role] = {role.code: role for role in ROLES}
"""The same by code."""


def vocabulary() -> dict[str, Any]:
    """The vocabulary as JSON can hold it, for readers in other languages.

    Example:
        >>> vocabulary()["roles"][0]["label"]
        'Both'
    """
    return {
        "roles": [asdict(role) for role in ROLES],
        "background": dict(BACKGROUND),
        "glossary": [asdict(term) for term in GLOSSARY],
    }


@dataclass(frozen=True)
class Term:
    """A word of the field that readers may not know, and what it means."""

    name: str
    meaning: str


GLOSSARY = (
    Term("Unit", "One output channel of a convolution, after its normalisation and its activation."),
    Term(
        "Contribution",
        "What a unit adds to the margin of an image, in nats: the label's logit minus the log-sum-exp of the others. "
        "Those of all units add up to what the whole layer does.",
    ),
    Term(
        "Effect",
        "Whether the mean contribution of a unit is above zero (helps), below zero (hurts), or neither by a test: no "
        "effect measurable.",
    ),
    Term(
        "Differing share",
        "Share of the (class, unit) pairs whose contribution differs between training and validation images. It is "
        "close to 0 unless the network has memorised, or the two sides are different kinds of images.",
    ),
    Term(
        "Agreement",
        f"Cohen's kappa of “helps” between two halves of the images: 1 at best, 0 by chance. Below "
        f"{RELIABLE_AGREEMENT:g} the roles would hardly be the same on other images.",
    ),
    Term(
        "Removable units",
        "Units without a measurable effect, where the network was as good without all of them on images that the roles "
        "had not seen.",
    ),
    Term(
        "Birth point",
        "When the first cycle appears as the strongest entries of a unit's map are joined one after another.",
    ),
    Term(
        "Feature entropy",
        "How scattered the birth points of a unit are over the images of a class, in nats. Low means that the unit "
        "responds alike to alike images. It falls with the size of the maps, so compare layers of one map size.",
    ),
    Term(
        "Ablation curve",
        "Accuracy while more and more units of a layer are switched off, from all on to all off.",
    ),
    Term(
        "Ranking gap",
        "Area between the ablation curves of an order, last rank first, and of its reverse. An order is "
        f"better than a random order if its gap exceeds that of random orders by more than {RANKING_MARGIN:g}.",
    ),
    Term(
        "Turning point",
        "The largest number of units that can be off with the loss of a class at its lowest. The published roles "
        "follow from it: units that are still on there are effective.",
    ),
)
"""What the tab explains behind its question mark."""


@dataclass(frozen=True)
class LayerFacts:
    """What the findings of a run are made of, for one layer; NaN where not measured.

    Attributes:
        name: name of the layer.
        units: number of its units.
        help_no_class: how many of them help no class measurably.
        removable: how many could be removed without a loss of accuracy on other images.
        differing_share: share of the (class, unit) pairs that contribute differently on the two sides.
        agreement: agreement of the roles from two halves of the images.
    """

    name: str
    units: int
    help_no_class: float
    removable: float
    differing_share: float
    agreement: float


def findings(layers: Sequence[LayerFacts]) -> list[str]:
    """What stands out in a run, in at most four sentences; none where roles are not by contribution.

    Example:
        >>> findings([LayerFacts("conv2", 512, 210, 0, 0.34, 0.9)])[0]
        'In conv2, 210 of 512 units help no class measurably.'
    """
    said = []
    unreliable = [layer for layer in layers if layer.agreement < RELIABLE_AGREEMENT]
    wide = [
        layer
        for layer in layers
        if layer.help_no_class >= max(1, NOTABLE_UNITS * layer.units) and layer not in unreliable
    ]
    if wide:
        widest = max(wide, key=lambda layer: layer.help_no_class / layer.units)
        verb = "helps" if widest.help_no_class == 1 else "help"
        said.append(
            f"In {_named(widest)}, {widest.help_no_class:.0f} of {_counted(widest.units)} {verb} no class measurably."
        )
    spare = [layer for layer in layers if layer.removable > 0]
    if spare:
        most = max(spare, key=lambda layer: layer.removable)
        said.append(
            f"Without {most.removable:.0f} of the {_counted(most.units)} of {_named(most)} the network was as good on "
            "other images."
        )
    tested = [layer for layer in layers if not math.isnan(layer.differing_share)]
    if tested:
        apart = max(tested, key=lambda layer: layer.differing_share)
        if apart.differing_share >= NOTABLE_SHARE:
            said.append(
                f"In {_named(apart)}, {100 * apart.differing_share:.0f} % of the (class, unit) pairs contribute "
                "differently on training and validation images."
            )
        else:
            said.append("In no layer is there a sign that the network has memorised its training images.")
    known = [layer.agreement for layer in layers if not math.isnan(layer.agreement)]
    if unreliable:
        names = ", ".join(_named(layer) for layer in unreliable[:3])
        more = f" and {len(unreliable) - 3} more" if len(unreliable) > 3 else ""
        said.append(f"There are not enough images to tell the roles of {names}{more}.")
    elif known:
        least = math.floor(100 * min(known) + 1e-6) / 100
        extent = "completely" if least == 1 else f"to {least:.2f}" + (" or better" if len(known) > 1 else "")
        where = " in every layer" if len(known) == len(layers) > 1 else ""
        said.append(f"The roles are reliable{where}: two halves of the images agree {extent}.")
    return said


def _named(layer: LayerFacts) -> str:
    return layer.name or "the model itself"


def _counted(units: int) -> str:
    return f"{units} unit{'' if units == 1 else 's'}"
