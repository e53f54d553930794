"""What is said of an order of units and of roles: whether they can be relied on, in the same words everywhere.

Console, scalars and the tab in TensorBoard take thresholds and sentences from here.
"""

from __future__ import annotations

import math

RANKING_MARGIN = 0.05
"""By how much a ranking gap must exceed that of a random order to say something: random orders differ by this much."""
RELIABLE_AGREEMENT = 0.6
"""Smallest agreement (Cohen's kappa) between the roles from two halves of the images that can be relied on."""
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
