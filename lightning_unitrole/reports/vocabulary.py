"""What roles are called, what they mean and how they look, and when a measurement is worth trusting.

The one source for the console, the scalars, the figures and the TensorBoard tab. It imports nothing but the standard
library, so that each of them can have it for free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

NEITHER = 0
TRAIN_ONLY = 1
VAL_ONLY = 2
BOTH = 3
UNDECIDED = 253
REMOVED = 254
NO_ROLE = 255

RANKING_MARGIN = 0.05
"""By how much a ranking gap must exceed that of a random order to say something: random orders differ by this much."""
NOTABLE_SHARE = 0.1
"""Share of the (class, unit) pairs that differ between the sides from which on a layer is said to memorise."""
NOTABLE_UNITS = 0.05
"""Share of the units of a layer that help no class from which on it is said to be wide."""
RELIABLE_AGREEMENT = 0.6
"""Smallest agreement (Cohen's kappa) between the roles from two halves of the images that can be relied on."""

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

NO_ORDER = "The order of these units is without information: their scores are undefined or tied."


def order_is_informative(ordered_classes: float, entropy: float) -> bool:
    """Whether the scores of a criterion tell any units of a layer apart.

    Args:
        ordered_classes: share of the classes in which they do; NaN in logs of earlier versions.
        entropy: median feature entropy of the layer; asked where the first is not known.

    Example:
        >>> order_is_informative(0.0, 1.2), order_is_informative(math.nan, 1.2)
        (False, True)
    """
    return not math.isnan(entropy) if math.isnan(ordered_classes) else ordered_classes > 0


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


def ranking_is_informative(ranking_gap: float, random_gap: float) -> bool | None:
    """Whether a ranking of units is better than a random order by more than random orders differ.

    One that is upside down is not, even where random orders happen to do worse still.

    Args:
        ranking_gap: area between the least-first and the most-first accuracy curve, -1 to 1.
        random_gap: the same for a random order in the place of the least-first one.

    Returns:
        None where one of the two was not measured (NaN).

    Example:
        >>> ranking_is_informative(0.3, 0.1), ranking_is_informative(0.12, 0.1)
        (True, False)
    """
    if ranking_gap < -RANKING_MARGIN:
        return False
    if math.isnan(ranking_gap) or math.isnan(random_gap):
        return None
    return ranking_gap > random_gap + RANKING_MARGIN


def ranking_verdict(ranking_gap: float, random_gap: float, criterion: str = "feature_entropy") -> str:
    """What the ablation curves of a layer say of the order in which a criterion puts its units, in one sentence.

    It says something of the criterion, and nothing of roles by contribution: see :data:`ROLES_APART`.

    Args:
        ranking_gap: area between the least-first and the most-first accuracy curve, -1 to 1.
        random_gap: the same for a random order in the place of the least-first one.
        criterion: name of the criterion.

    Example:
        >>> ranking_verdict(0.12, 0.1)
        'The order by feature entropy is no better than a random one.'
    """
    return f"The order by {spoken(criterion)} {_VERDICTS[ranking_word(ranking_gap, random_gap)]}."


def ranking_word(ranking_gap: float, random_gap: float) -> str:
    """The same in two or three words, for a cell of a table whose heading names the criterion.

    Example:
        >>> ranking_word(0.12, 0.1)
        'no better than random'
    """
    if math.isnan(ranking_gap):
        return "not tested"
    if ranking_gap < -RANKING_MARGIN:
        return "upside down"
    if math.isnan(random_gap):
        return "not compared"
    if ranking_gap < random_gap - RANKING_MARGIN:
        return "worse than random"
    return "better than random" if ranking_is_informative(ranking_gap, random_gap) else "no better than random"


_VERDICTS = {
    "not tested": "was not put to the test",
    "upside down": "is upside down: the network needs the units at its end more than those at its head",
    "not compared": "was not compared with a random one",
    "worse than random": "is worse than a random one",
    "no better than random": "is no better than a random one",
    "better than random": "is better than a random one",
}


ROLES_APART = "Roles by contribution do not depend on it."
"""What to say beside a verdict on an order where it is no verdict on the roles."""


def spoken(criterion: str) -> str:
    """The name of a criterion as readers say it.

    Example:
        >>> spoken("feature_entropy")
        'feature entropy'
    """
    return criterion.replace("_", " ").strip() or "the criterion"


def reliability_verdict(agreement: float, images_per_class: int) -> str:
    """Whether the roles of a layer can be relied on, in one sentence.

    Args:
        agreement: Cohen's kappa between the roles from two disjoint halves of the images, at most 1; NaN where it was
            not measured.
        images_per_class: number of images of each class that both halves have together.

    Example:
        >>> reliability_verdict(0.82, 100)
        'The roles are reliable: two halves of 100 images a class agree to 0.82.'
    """
    images = f"{images_per_class} image{'' if images_per_class == 1 else 's'} a class"
    if math.isnan(agreement):
        return f"How reliable the roles are was not measured: there are no two halves of {images} to compare."
    if agreement >= RELIABLE_AGREEMENT:
        return f"The roles are reliable: two halves of {images} agree to {agreement:.2f}."
    needed = images_needed(agreement, images_per_class)
    more = "more images" if needed is None else f"about {needed} images a class"
    return (
        f"There are not enough images to tell the roles: two halves of {images} agree only to {agreement:.2f}, less "
        f"than {RELIABLE_AGREEMENT:g}; use {more}."
    )


def images_needed(agreement: float, images_per_class: int) -> int | None:
    """Images of each class, about, with which two halves would agree well enough; None where that cannot be told.

    Args:
        agreement: agreement between two halves of the images.
        images_per_class: number of images of each class that both halves have together.

    Source: the prophecy formula of Spearman and Brown, 1910, for how agreement grows with the length of a test.

    Example:
        >>> images_needed(0.4, 20)
        45
    """
    if math.isnan(agreement) or not 0.05 < agreement < 1:
        return None
    times = RELIABLE_AGREEMENT * (1 - agreement) / (agreement * (1 - RELIABLE_AGREEMENT))
    return math.ceil(max(times, 1.0) * images_per_class)
