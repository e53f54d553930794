"""What an analysis says of one layer: plain, frozen data with no reference to a model or a trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.effects import Effects, without_effect
from lightning_unitrole.reports.figures import draw_curves, draw_role_shares, subplots
from lightning_unitrole.reports.roles import UnitRole, assign_roles, effective_set
from lightning_unitrole.reports.vocabulary import NO_ROLE

SPLITS = ("train", "val")
_TENSORS = (
    "images",
    "entropy",
    "selective_rate",
    "ineffectiveness",
    "non_finite",
    "score",
    "order",
    "overall_order",
)
_CURVE_TENSORS = ("ablated", "loss", "accuracy", "top5")


@dataclass(frozen=True, repr=False)
class SplitReport:
    """What one split, training or validation, says of the units of one layer (C classes, U units).

    Attributes:
        images: ``[C]`` int64, images of each class that were used.
        entropy: ``[C, U]`` float64, feature entropy in nats; NaN where no map of the unit has a birth point.
        selective_rate: ``[C, U]`` float64 in [0, 1], share of images without a birth point.
        ineffectiveness: ``[C, U]`` float64, entropy / (1 - selective rate); NaN where the entropy is.
        non_finite: ``[C, U]`` int64, maps with NaN or infinity, which are left out of the entropy.
        score: ``[C, U]`` float64, what the criterion says of the unit: higher is more effective.
        order: ``[C, U]`` int64, unit indices from the most to the least effective.
        overall_order: ``[U]`` int64, the same for all classes together (mean rank over the classes).
        curves: ablation over the images of all classes, units in ``overall_order``: ``"least_first"``,
            ``"most_first"``, and random orders, ``"random"``, ``"random_1"`` and so on; ``"contribution"``: units that
            contribute least first, by the mean absolute contribution to a class. With ``off="mean"`` also
            ``"least_first_zero"`` and ``"most_first_zero"``. Empty when no ablation was run.
        class_curves: one least-first curve a class, on the images of that class, units in that class's ``order``.
        contributions: what each unit adds to the margin of each image; None if it was not measured.
        removal: what the margin loses when a single unit is switched off, in the same form, NaN for units that were not
            tried; None if it was not measured. Its margins and errors are zero.
        rank_agreement: rank correlation of the criterion's scores between the even and the odd images of each class,
            mean over the classes; NaN where it was not measured.
    """

    images: Tensor
    entropy: Tensor
    selective_rate: Tensor
    ineffectiveness: Tensor
    non_finite: Tensor
    score: Tensor
    order: Tensor
    overall_order: Tensor
    curves: Mapping[str, AblationCurve] = field(default_factory=dict)
    class_curves: tuple[AblationCurve | None, ...] = ()
    contributions: Contributions | None = None
    removal: Contributions | None = None
    rank_agreement: float = math.nan

    def __repr__(self) -> str:
        classes, units = self.entropy.shape
        return f"SplitReport({int(self.images.sum())} images, {classes} classes, {units} units)"

    @property
    def ranking_gap(self) -> float:
        """Area between the least-first and the most-first accuracy curve; NaN when no ablation was run.

        Positive: the ranking knows something. Negative: it misleads here.
        """
        return self._gap_to("most_first")

    @property
    def random_gap(self) -> float:
        """Area between the random and the most-first accuracy curve: what an uninformed least-first order would get."""
        if not self.random_curves or "most_first" not in self.curves:
            return float("nan")
        areas = [curve.area for curve in self.random_curves]
        return sum(areas) / len(areas) - self.curves["most_first"].area

    @property
    def random_curves(self) -> list[AblationCurve]:
        """Curves of random orders: the band that an order must leave to say something."""
        return [curve for name, curve in self.curves.items() if name.startswith("random")]

    @property
    def ranking_gap_at_zero(self) -> float:
        """The ranking gap with units at zero, where the other curves have them at their mean; NaN elsewhere."""
        if "least_first_zero" not in self.curves:
            return float("nan")
        return self.curves["least_first_zero"].area - self.curves["most_first_zero"].area

    @property
    def contribution_gap(self) -> float:
        """Area between the curve that switches off what contributes least and the random ones; NaN without them."""
        if "contribution" not in self.curves or not self.random_curves:
            return float("nan")
        areas = [curve.area for curve in self.random_curves]
        return self.curves["contribution"].area - sum(areas) / len(areas)

    def _gap_to(self, control: str) -> float:
        if "least_first" not in self.curves or control not in self.curves:
            return float("nan")
        return self.curves["least_first"].area - self.curves[control].area

    def arrays(self) -> dict[str, Tensor]:
        """Every tensor by its place; inverse of :meth:`from_arrays`."""
        found = {key: getattr(self, key) for key in _TENSORS}
        found["rank_agreement"] = torch.tensor(self.rank_agreement, dtype=torch.float64)
        for key in ("contributions", "removal"):
            measured: Contributions | None = getattr(self, key)
            found |= {f"{key}/{name}": value for name, value in (measured.arrays() if measured else {}).items()}
        present = {f"curves/{key}": curve for key, curve in self.curves.items()}
        present |= {
            f"class_curves/{klass}": curve for klass, curve in enumerate(self.class_curves) if curve is not None
        }
        for name, curve in present.items():
            found |= {f"{name}/{key}": getattr(curve, key) for key in _CURVE_TENSORS}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor], num_classes: int) -> SplitReport:
        """Inverse of :meth:`arrays`; what earlier formats did not have is left at its default."""
        grouped = {key: _below(arrays, key) for key in ("contributions", "removal", "curves", "class_curves")}
        curves = {
            group: {
                name: AblationCurve(*(grouped[group][f"{name}/{key}"] for key in _CURVE_TENSORS))
                for name in dict.fromkeys(place.rpartition("/")[0] for place in grouped[group])
            }
            for group in ("curves", "class_curves")
        }
        by_class = curves["class_curves"]
        measured = {
            key: Contributions.from_arrays(grouped[key]) if grouped[key] else None
            for key in ("contributions", "removal")
        }
        return cls(
            **{key: arrays[key] for key in _TENSORS},
            curves=curves["curves"],
            class_curves=tuple(by_class.get(str(klass)) for klass in range(num_classes)) if by_class else (),
            contributions=measured["contributions"],
            removal=measured["removal"],
            rank_agreement=float(arrays.get("rank_agreement", math.nan)),
        )


@dataclass(frozen=True)
class RemovalCheck:
    """What switching groups of units off does to the network, on images that the roles have not seen.

    Attributes:
        images: number of images, of all classes.
        accuracy: of the network as it is, over all classes, 0 to 1.
        loss: its mean loss.
        removed: number of units without a measurable effect on any class, that were switched off together.
        removed_accuracy: accuracy without them.
        removed_loss: loss without them.
        helpers: number of units that help over all classes.
        helpers_accuracy: accuracy with these alone.
        helpers_loss: loss with these alone.
        random_accuracy: ``[D]`` float64, accuracy without as many random units, for each of D draws.
        random_loss: ``[D]`` float64, the same, loss.
    """

    images: int
    accuracy: float
    loss: float
    removed: int
    removed_accuracy: float
    removed_loss: float
    helpers: int
    helpers_accuracy: float
    helpers_loss: float
    random_accuracy: Tensor
    random_loss: Tensor

    @property
    def removable(self) -> bool:
        """Whether the units without a measurable effect can go: accuracy falls by no more than a standard error."""
        if not self.removed or not self.images:
            return False
        error = math.sqrt(max(self.accuracy * (1 - self.accuracy), 1 / self.images) / self.images)
        return self.removed_accuracy >= self.accuracy - error

    def arrays(self) -> dict[str, Tensor]:
        """Its values as tensors by name."""
        return {field.name: torch.as_tensor(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> RemovalCheck:
        """Inverse of :meth:`arrays`."""
        values: dict[str, Any] = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(**{key: value if value.ndim else value.item() for key, value in values.items()})


@dataclass(frozen=True, repr=False)
class LayerReport:
    """What an analysis says of one layer (C classes, U units).

    Attributes:
        name: name of the convolution in the model.
        map_size: height and width of its maps.
        train: measured on training images.
        val: measured on validation images.
        roles: ``[C, U]`` uint8, a :class:`~lightning_unitrole.reports.roles.UnitRole` for each class and unit;
            ``NO_ROLE`` for a class without images on both sides, ``UNDECIDED`` for one with too few to tell. Empty
            ``[0, U]`` where no roles were measured.
        summary: ``[U]`` uint8, the role of each unit over all classes. By contribution, it follows from the unit's mean
            over all images, classes weighted equally; by turning point it is the role in most classes, ties to the
            larger number, that is to the more useful one. Empty ``[0]`` where no roles were measured.
        effects: of each (class, unit) pair, ``[C, U]``; None unless roles are by contribution.
        summary_effects: of each unit over all classes, ``[U]``.
        agreement: agreement of "helps" between the two halves of the images, within a class: Cohen's kappa, 1 at best
            and 0 by chance; NaN where it was not measured.
        prediction: rank correlation of contribution and removal effect over some units; NaN where it was not measured.
        check: what switching off units without a measurable effect does on other images; None if it was not measured.
        macs: multiply-accumulate operations of the layer's convolution for one image; NaN where they are not known.
    """

    name: str
    map_size: tuple[int, int]
    train: SplitReport
    val: SplitReport
    roles: Tensor
    summary: Tensor
    effects: Effects | None = None
    summary_effects: Effects | None = None
    agreement: float = math.nan
    prediction: float = math.nan
    check: RemovalCheck | None = None
    macs: float = math.nan

    def __repr__(self) -> str:
        size = "x".join(map(str, self.map_size))
        return f"LayerReport({self.name!r}, {self.num_units} units, maps of {size}, {len(self.val.images)} classes)"

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """The ablation curves on validation images; the shares of the roles where there are no curves.

        Args:
            ax: Matplotlib axes to draw in; a new figure by default.

        Returns:
            The figure and the axes.

        Raises:
            ImportError: if Matplotlib is not installed.
        """
        figure, axes = subplots(ax)
        if self.val.curves:
            draw_curves(axes, self.val)
            axes.set_ylabel("accuracy, all classes")
            axes.set_title(self.name)
            axes.legend(frameon=False, fontsize=9)
        else:
            draw_role_shares(axes, {self.name: self.role_shares})
        return figure, axes

    @property
    def num_units(self) -> int:
        """Number of units of the layer."""
        return self.val.entropy.shape[1]

    @property
    def ranking_gap(self) -> float:
        """Ranking gap on validation images, see :attr:`SplitReport.ranking_gap`."""
        return self.val.ranking_gap

    @property
    def role_shares(self) -> dict[UnitRole, float]:
        """Share of each role among the (class, unit) pairs that have one; empty without roles."""
        known = self.roles[self.roles <= max(UnitRole)]
        if known.numel() == 0:
            return {}
        return {role: float((known == role).double().mean()) for role in UnitRole}

    @property
    def differing_share(self) -> float:
        """Share of the (class, unit) pairs whose contribution differs between the sides, the sign of overfitting."""
        return math.nan if self.effects is None else self.effects.differing_share

    @property
    def removable(self) -> Tensor:
        """``[K]`` int64, units without a measurable effect, if the network was as good without them on other images."""
        if self.check is None or not self.check.removable:
            return torch.empty(0, dtype=torch.int64)
        return self.without_effect.nonzero().flatten()

    @property
    def without_effect(self) -> Tensor:
        """``[U]`` bool, units that have no measurable effect on any class."""
        if self.effects is None or self.summary_effects is None:
            return torch.zeros(self.num_units, dtype=torch.bool)
        return without_effect(self.effects, self.summary_effects)

    def arrays(self) -> dict[str, Tensor]:
        """Every tensor by its place; inverse of :meth:`from_arrays`."""
        found = {"roles": self.roles, "summary": self.summary}
        for key in ("agreement", "prediction", "macs"):
            found[key] = torch.tensor(getattr(self, key), dtype=torch.float64)
        for key in ("effects", "summary_effects"):
            effects: Effects | None = getattr(self, key)
            if effects is not None:
                found |= {f"{key}/{field.name}": getattr(effects, field.name) for field in fields(Effects)}
        found |= {f"check/{name}": value for name, value in (self.check.arrays() if self.check else {}).items()}
        for split in SPLITS:
            measured: SplitReport = getattr(self, split)
            found |= {f"{split}/{name}": value for name, value in measured.arrays().items()}
        return found

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Tensor], *, name: str, map_size: tuple[int, int], num_classes: int
    ) -> LayerReport:
        """Inverse of :meth:`arrays`."""
        effects = {
            key: Effects(**parts) if (parts := _below(arrays, key)) else None for key in ("effects", "summary_effects")
        }
        check = _below(arrays, "check")
        return cls(
            name=name,
            map_size=map_size,
            train=SplitReport.from_arrays(_below(arrays, "train"), num_classes),
            val=SplitReport.from_arrays(_below(arrays, "val"), num_classes),
            roles=arrays["roles"],
            summary=arrays["summary"],
            effects=effects["effects"],
            summary_effects=effects["summary_effects"],
            agreement=float(arrays.get("agreement", math.nan)),
            prediction=float(arrays.get("prediction", math.nan)),
            check=RemovalCheck.from_arrays(check) if check else None,
            macs=float(arrays.get("macs", math.nan)),
        )


def turning_point_roles(train: SplitReport, val: SplitReport) -> Tensor:
    """Roles as published, ``[C, U]`` uint8, from the turning points of the curve of each class on either side.

    Empty ``[0, U]`` without such curves; a class without images on both sides has ``NO_ROLE``.

    Source: arXiv:2011.00789, on the effective sets of arXiv:2103.09716, section 4.
    """
    classes, units = val.entropy.shape
    if not val.class_curves:
        return torch.zeros(0, units, dtype=torch.uint8)
    roles = torch.full((classes, units), NO_ROLE, dtype=torch.uint8)
    for index, (on_train, on_val) in enumerate(zip(train.class_curves, val.class_curves, strict=True)):
        if on_train is not None and on_val is not None:
            roles[index] = assign_roles(
                effective_set(train.order[index], on_train.turning_point),
                effective_set(val.order[index], on_val.turning_point),
            )
    return roles


def _below(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}
