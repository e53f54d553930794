"""Pictures of reports and curves. Matplotlib is loaded when the first one is drawn.

Reports draw themselves with this module, so it knows them by their attributes alone: ``layer`` is a
:class:`~lightning_unitrole.reports.layer.LayerReport`, ``split`` a
:class:`~lightning_unitrole.reports.layer.SplitReport`, and ``curve`` an
:class:`~lightning_unitrole.reports.curves.AblationCurve`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.vocabulary import NO_ROLE, ROLE_OF, UNDECIDED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST, _MOST, _CONTRIBUTION, _RANDOM = "#009E73", "#D55E00", "#0072B2", "#999999"
_MAP_CODES = (*UnitRole, UNDECIDED, NO_ROLE)
_CRITERION_COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")


def ablation_figure(layer: Any) -> Figure:
    """The ablation curves of a layer over all classes, on the images that they were measured on.

    The shaded area between least and most effective first is the ranking gap; random orders make the grey band. Where
    turning points are read, they are marked on the least-first curves.
    """
    sides = [side for side in (("training", layer.train), ("validation", layer.val)) if side[1].curves]
    figure = make_figure(width=6.4, height=3.3)
    axes = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for axis, (title, split) in zip(axes, sides, strict=True):
        draw_curves(axis, split)
        axis.set_title(f"{title}, ranking gap {split.ranking_gap:+.3f}", fontsize=10)
    axes[0].set_ylabel("accuracy, all classes")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=2, fontsize=9, frameon=False, loc="outside lower center")
    figure.suptitle(layer.name, fontsize=11)
    return figure


def draw_curves(axis: Axes, split: Any) -> None:
    """The ablation curves of one split: accuracy over the number of units that are switched off."""
    least, most = split.curves["least_first"], split.curves["most_first"]
    _shade_gap(axis, least, most)
    _draw_band(axis, split.random_curves)
    for name, curve, color in (
        ("least effective first", least, _LEAST),
        ("most effective first", most, _MOST),
        ("least contribution first", split.curves.get("contribution"), _CONTRIBUTION),
    ):
        if curve is not None:
            axis.plot(curve.ablated, curve.accuracy, color=color, label=name, linewidth=1.8)
    if split.class_curves:
        _mark_turning_point(axis, least)
    axis.set_xlabel(f"units switched off, of {int(least.ablated[-1])}")
    axis.locator_params(axis="x", integer=True)
    axis.set_ylim(-0.03, 1.18)


def draw_curve(axis: Axes, curve: Any, label: str | None = None) -> None:
    """One ablation curve with its turning point."""
    axis.plot(curve.ablated, curve.accuracy, color=_LEAST, label=label, linewidth=1.8)
    _mark_turning_point(axis, curve)
    axis.set_xlabel(f"units switched off, of {int(curve.ablated[-1])}")
    axis.set_ylabel("accuracy")
    axis.locator_params(axis="x", integer=True)
    axis.set_ylim(-0.03, 1.18)
    if label is not None:
        axis.legend(frameon=False)


def draw_role_shares(axis: Axes, shares: Mapping[str, Mapping[Any, float]]) -> None:
    """One bar a layer with the shares of the roles, in the colours of the tab, the first layer on top."""
    names = list(shares)
    left = np.zeros(len(names))
    for role in (UnitRole.BOTH, UnitRole.VAL_ONLY, UnitRole.TRAIN_ONLY, UnitRole.NEITHER):
        widths = np.array([100 * shares[name].get(role, 0.0) for name in names])
        axis.barh(range(len(names)), widths, left=left, label=ROLE_OF[role].label, **ROLE_OF[role].patch)
        left += widths
    axis.set_yticks(range(len(names)), [name or "(the model itself)" for name in names])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("(class, unit) pairs, %")
    axis.legend(ncols=4, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def subplots(ax: Any, *, width: float = 6.4, height: float = 3.6) -> tuple[Any, Any]:
    """A new figure, in inches, and its axes; or the given axes with theirs.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    if ax is not None:
        return ax.figure, ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("Plots need Matplotlib: pip install matplotlib") from error
    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _draw_band(axis: Axes, curves: Sequence[Any]) -> None:
    if curves:
        off = np.unique(np.concatenate([curve.ablated for curve in curves]))
        accuracy = np.stack([np.interp(off, curve.ablated, curve.accuracy) for curve in curves])
        axis.fill_between(off, accuracy.min(0), accuracy.max(0), color=_RANDOM, alpha=0.5, linewidth=0)
        axis.plot(off, accuracy.mean(0), color=_RANDOM, label="random orders", linewidth=1.8)


def _mark_turning_point(axis: Axes, least: Any) -> None:
    turn = least.turning_point
    at = float(least.accuracy[least.ablated == turn][0])
    axis.plot([turn], [at], "o", color=_LEAST, markersize=7, markeredgecolor="black")
    axis.axvline(turn, color=_LEAST, linestyle=":", linewidth=1)
    side, align = (5, "left") if turn <= int(least.ablated[-1]) / 2 else (-5, "right")
    label = f"turning point {turn}"
    axis.annotate(label, (turn, at), xytext=(side, 7), textcoords="offset points", ha=align, fontsize=9)


def role_map_figure(layer: Any, class_names: Sequence[str]) -> Figure:
    """The role of every unit for every class, as an image: one row a class, one column a unit.

    Units are sorted by how many classes they serve on validation images, so that the picture shows shares.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    serves = (layer.roles == UnitRole.BOTH).sum(0) * 1000 + (layer.roles == UnitRole.VAL_ONLY).sum(0)
    columns = serves.argsort(descending=True, stable=True)
    roles = layer.roles[:, columns].clone()
    place = {code: index for index, code in enumerate(_MAP_CODES)}
    for code, index in place.items():
        roles[layer.roles[:, columns] == code] = index
    classes = len(class_names)
    figure = make_figure(width=6.4, height=1.3 + 0.24 * min(max(classes, 4), 40))
    axis = figure.subplots()
    axis.imshow(
        roles.numpy(),
        cmap=ListedColormap([ROLE_OF[code].matplotlib for code in _MAP_CODES]),
        vmin=-0.5,
        vmax=len(_MAP_CODES) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    if classes <= 40:
        axis.set_yticks(range(classes), [str(name) for name in class_names], fontsize=8)
    axis.set_ylabel("class")
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("units, those effective for most classes first")
    shares = layer.role_shares
    handles = [
        Patch(**ROLE_OF[role].patch, label=f"{ROLE_OF[role].label} {100 * shares.get(role, 0):.0f} %")
        for role in (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)
    ]
    axis.legend(handles=handles, ncols=2, fontsize=9, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.suptitle(layer.name, fontsize=11)
    return figure


def criteria_figure(layer: str, curves: Mapping[str, Any]) -> Figure:
    """The least-first ablation curves of several criteria in one plot, with a table of the areas under them.

    The ranking gap is the area under the least-first curve minus that under the most-first one: the larger, the more a
    criterion knows of this layer.
    """
    figure = make_figure(width=8.0, height=4.0)
    axis, beside = figure.subplots(1, 2, width_ratios=[1.0, 0.8])
    ranked = sorted(curves.items(), key=lambda item: -item[1].ranking_gap)
    for (name, found), color in zip(ranked, itertools.cycle(_CRITERION_COLORS)):
        style = {"color": _RANDOM, "linestyle": "--"} if name == "random" else {"color": color}
        axis.plot(found.least_first.ablated, found.least_first.accuracy, label=name, linewidth=1.8, **style)
    axis.set_xlabel("units switched off, least effective first")
    axis.set_ylabel("accuracy")
    axis.set_ylim(-0.03, 1.05)
    axis.locator_params(axis="x", integer=True)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, fontsize=8, frameon=False, loc="outside lower center")
    beside.axis("off")
    cells = [
        [name, f"{found.least_first.area:.3f}", f"{found.most_first.area:.3f}", f"{found.ranking_gap:+.3f}"]
        for name, found in ranked
    ]
    table = beside.table(
        cellText=cells,
        colLabels=["criterion", "area\nleast first", "area\nmost first", "ranking\ngap"],
        colWidths=[0.4, 0.2, 0.2, 0.2],
        loc="center",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(1, 1.8)
    figure.suptitle(f"{layer}: which ranking to trust", fontsize=11)
    return figure


def _shade_gap(axis: Axes, least: Any, most: Any) -> None:
    ablated = np.union1d(least.ablated, most.ablated)
    axis.fill_between(
        ablated,
        np.interp(ablated, least.ablated, least.accuracy),
        np.interp(ablated, most.ablated, most.accuracy),
        color="#DDDDDD",
        linewidth=0,
    )


def make_figure(*, width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    # A Figure made without pyplot needs no display and leaves the user's own backend and open figures alone.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")
