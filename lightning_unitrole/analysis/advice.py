"""What to tell the user about an analysis: shortages, broken maps, rankings that mislead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_unitrole.ablation.tasks import NO_LABEL
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.reports.curves import CriteriaComparison
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.verdicts import (
    RELIABLE_AGREEMENT,
    ROLES_APART,
    ranking_is_informative,
    reliability_verdict,
    spoken,
)


def announcement(session: AnalysisSession, epoch_images: int | None) -> str:
    """What will be analysed, and what that takes at most, to be said before it begins.

    Args:
        session: the analysis.
        epoch_images: images of an epoch of training; None if nobody knows.
    """
    names = [layer.name for layer in session.layers]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    if session.options.layers == "auto" and len(names) < session.num_found:
        shown += f" ({session.num_found - len(names)} other layers can be named in layers=)"
    if flat := [layer.name for layer in session.layers if not layer.grid]:
        shown += f"; without birth points, which need maps, and ranked by contribution: {', '.join(flat[:4])}"
    what = (
        f"Unit roles: {shown}; {session.images_per_class} images of each of {session.num_classes} classes, training "
        "and validation."
    )
    if not epoch_images:
        return what
    # Both sides use the same images of each class, so no more than an epoch has.
    share = min(1.0, epoch_images / (session.images_per_class * session.num_classes))
    # A training step is a forward pass and a backward pass, which takes about two.
    epochs = share * session.most_passes() / (3 * epoch_images)
    shown_epochs = f"{epochs:.2g}" if epochs < 10 else f"{epochs:.0f}"
    return f"{what} One analysis takes at most as long as about {shown_epochs} epochs of training."


def shortage(train: Tensor, val: Tensor, *, wanted: int, class_names: Sequence[str]) -> str | None:
    """What to tell the user where classes have fewer images than wanted; None where none has.

    Args:
        train: ``[C]`` training images found, up to ``wanted``.
        val: ``[C]`` validation images found, up to ``wanted``.
        wanted: images a class that were asked for.
        class_names: names of the classes.
    """
    train, val = train.clamp(max=wanted), val.clamp(max=wanted)
    quota = torch.minimum(train, val)
    short = [
        c
        for c in (quota < wanted).nonzero().flatten().tolist()
        if class_names[c] != NO_LABEL or int(train[c] + val[c])  # images without a label there need not be
    ]
    if not short:
        return None
    listed = "; ".join(f"{class_names[c]!r}: {int(train[c])} and {int(val[c])}" for c in short[:5])
    more = f"; and {len(short) - 5} more" if len(short) > 5 else ""
    missing = [class_names[c] for c in short if not int(quota[c])]
    without = f" No roles for {', '.join(map(repr, missing[:5]))}: one side has no image of it." if missing else ""
    return (
        f"images_per_class={wanted}, but {len(short)} of {len(quota)} classes have fewer. Training and validation "
        f"images found: {listed}{more}. Both sides use the smaller number of each class.{without}"
    )


def non_finite_maps(report: UnitReport) -> str | None:
    """What to tell the user where maps held NaN or infinity; None where none did."""
    found = [
        f"{layer.name!r} ({int(layer.train.non_finite.sum())} training, {int(layer.val.non_finite.sum())} validation)"
        for layer in report.layers.values()
        if bool(layer.train.non_finite.any()) or bool(layer.val.non_finite.any())
    ]
    if not found:
        return None
    return (
        "Maps with NaN or infinity have no birth point and were left out of the entropy. They are in "
        f"{', '.join(found)}. Look for an overflow in the layers before the first of these."
    )


def left_out_images(report: UnitReport) -> str | None:
    """What to tell the user where contributions of images were not finite; None where all were."""
    found = []
    for layer in report.layers.values():
        for split in (layer.train, layer.val):
            if split.contributions is not None:
                missing = int(split.images.sum()) - int(split.contributions.images.sum())
                found += [f"{layer.name!r} ({missing} of {int(split.images.sum())})"] if missing else []
    if not found:
        return None
    return (
        "Images whose margin or contributions are NaN or infinite were left out of the roles, in "
        f"{', '.join(found)}. Look for an overflow in the network's outputs."
    )


def turning_gaps(report: UnitReport) -> str | None:
    """What to tell the user where zero and mean ablation say opposite things of a ranking; None where they agree."""
    found = [
        f"{name!r} ({layer.val.ranking_gap:+.3f} with units at their mean, "
        f"{layer.val.ranking_gap_at_zero:+.3f} at zero)"
        for name, layer in report.layers.items()
        if layer.val.ranking_gap * layer.val.ranking_gap_at_zero < 0
    ]
    if not found:
        return None
    return (
        f"The ranking gap changes its sign with what a unit gives that is off: {', '.join(found)}. Do not rely on it."
    )


def unreliable_roles(report: UnitReport) -> str | None:
    """What to tell the user of layers whose roles would hardly repeat on other images; None where there are none."""
    found = [
        f"{name!r}: {reliability_verdict(layer.agreement, int(layer.val.images.max()))}"
        for name, layer in report.layers.items()
        if layer.agreement < RELIABLE_AGREEMENT
    ]
    return " ".join(found) or None


def misleading_layers(report: UnitReport) -> list[str]:
    """Layers whose ranking of validation images is not clearly better than a random order."""
    return [
        name
        for name, layer in report.layers.items()
        if layer.val.curves and not ranking_is_informative(layer.val.ranking_gap, layer.val.random_gap)
    ]


def misleading_ranking(report: UnitReport, layers: Sequence[str], comparison: CriteriaComparison | None) -> str:
    """What to tell the user of layers whose ranking is no better than a random order.

    Args:
        report: where the ranking was found wanting.
        layers: these layers.
        comparison: all criteria on them; None if they were not compared.
    """
    gaps = [
        f"{name!r} (ranking gap {report.layers[name].val.ranking_gap:+.3f}, a random order "
        f"{report.layers[name].val.random_gap:+.3f})"
        for name in layers
    ]
    better = None if comparison is None else comparison.best()
    if comparison is None:
        advice = "Pass compare_criteria='suspect' to see whether another criterion does better there."
    elif better not in (report.criterion, None):
        advice = f"Of all criteria {better!r} does best there; pass criterion={better!r} to use it."
    else:
        advice = "No other criterion does better there; do not rely on its order in these layers."
    apart = f" {ROLES_APART}" if report.role_definition == "contribution" else ""
    order = f"The order by {spoken(report.criterion)} is no better than a random one"
    return f"{order} in {', '.join(gaps)}.{apart} {advice}"
