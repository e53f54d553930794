"""The settings of an analysis, in one place: ``analyze``, the monitor and pruning all take these."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, signature
from typing import Any, Literal, TypeVar, get_args

from lightning_unitrole.ablation.scores import ScoreFn
from lightning_unitrole.ablation.tasks import Task
from lightning_unitrole.data.batches import BatchFn, GroupFn
from lightning_unitrole.errors import SettingError
from lightning_unitrole.ranking.criteria import Criterion, resolve_criterion
from lightning_unitrole.topology import BACKENDS

Roles = Literal["contribution", "turning_point"]
Off = Literal["zero", "mean"]
MeasuredEffects = Literal["contribution", "removal"]
BackendName = Literal["auto", "ripser", "torch", "numba", "triton"]
Auto = Literal["auto"]

IMAGES = 5000
"""Images of a split, about, that ``images_per_class="auto"`` keeps to where there are many classes."""
_MOST_PER_CLASS, _FEWEST_PER_CLASS = 100, 10

CURVE_IMAGES = 1000
"""Images, about, that ``curve_images="auto"`` keeps to where there are many classes."""
_MOST_ON_CURVES = 20

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(kw_only=True, eq=False, repr=False)
class AnalysisOptions:
    """What to analyse and how.

    Attributes:
        layers: ``"auto"`` for the last convolution of each resolution, ``"all"``, or names or glob patterns of
            convolutions.
        images_per_class: images of each class to use, at most; training and validation use the same number. ``"auto"``
            is 100 for up to 50 classes and fewer for more, so that a split has about 5,000 images, but at least 10.
        criterion: how units are ranked, a name of :data:`lightning_unitrole.ranking.criteria.CRITERIA` or a function
            from
            :class:`~lightning_unitrole.ranking.criteria.UnitStatistics` to scores ``[classes, units]``, higher more
            effective.
        roles: ``"contribution"``: a unit's role follows from tests of what it adds to the network's answers, which
            repeat on other images; ``"turning_point"``: the published definition, from the ablation curve of each
            class.
        effects: ``"contribution"``, by integrated gradients, or ``"removal"`` to measure beside it what is lost when
            each single unit is switched off, which costs a pass for each unit.
        contribution_steps: nodes of the integral. What is said repeats as well with 3 as with 16; in the earliest
            layers 4 and more come closer to the exact integral.
        off: what a unit that is switched off gives: ``"zero"``, or ``"mean"``, its mean map over the images.
        ablation_points: numbers of ablated units that a curve is measured at, about, where its turning point is read;
            elsewhere a quarter of them at most, close together only where the curve falls. 0 for no ablation.
        curve_images: images of each class that curves are measured on, at most, other than those that roles come from
            where there are enough; 0 for no curves. ``"auto"`` is 20 for up to 50 classes and fewer for more, so that
            there are about 1,000. ``roles="turning_point"`` uses the images of the ranking instead.
        class_curves: measure a curve for each class, and all curves on training images too. Always so with
            ``roles="turning_point"``.
        num_classes: number of classes; taken from the width of the model's output when left out.
        class_names: a name for each class, in the order of their indices; taken from the training dataset's ``classes``
            when left out, where it has as many.
        max_birth: largest birth point that is told apart.
        max_density: share of the edges that enter the filtration.
        backend: topology backend, see :func:`~lightning_unitrole.topology.birth_points`.
        task: ``"multiclass"``, ``"binary"``, ``"multilabel"``, ``"regression"`` or ``"segmentation"``; see
            :mod:`~lightning_unitrole.ablation.tasks`. Seen from outputs and targets, or from the loss that
            ``validation_step`` computes, when left out.
        batch_fn: function from a batch to ``(inputs, targets)``.
        group_fn: function from a batch's targets to ``[B]`` group indices, to group images by something other than
            their label; needs ``num_classes`` or ``class_names``.
        score_fn: function from outputs and targets to the loss ``[B]`` and the score ``[B]`` of each image, and if it
            likes the margin ``[B]`` that contributions are measured of, for anything that is none of the tasks.

    Raises:
        SettingError: if a value is out of range.
    """

    layers: str | Sequence[str] = "auto"
    images_per_class: int | Auto = "auto"
    criterion: str | Criterion = "feature_entropy"
    roles: Roles = "contribution"
    effects: MeasuredEffects = "contribution"
    contribution_steps: int = 3
    off: Off = "zero"
    ablation_points: int = 64
    curve_images: int | Auto = "auto"
    class_curves: bool = False
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    max_birth: int = 50
    max_density: float = 0.8
    backend: BackendName = "auto"
    task: Task | None = None
    batch_fn: BatchFn | None = None
    group_fn: GroupFn | None = None
    score_fn: ScoreFn | None = None

    def __post_init__(self) -> None:
        if self.ablation_points == 1:
            raise SettingError("ablation_points=1; expected at least 2 to make a curve, or 0 for no ablation.")
        for name, least in (
            ("images_per_class", 1),
            ("ablation_points", 0),
            ("curve_images", 0),
            ("contribution_steps", 1),
            ("max_birth", 1),
            ("num_classes", 1),
        ):
            value = getattr(self, name)
            if name in ("images_per_class", "curve_images") and value == "auto":
                continue
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise SettingError(f"{name}={value!r}; expected an integer of at least {least}.")
        if not isinstance(self.max_density, (int, float)) or not 0 < self.max_density <= 1:
            raise SettingError(f"max_density={self.max_density!r}; expected a number above 0 and at most 1.")
        for name, choices in (("roles", Roles), ("effects", MeasuredEffects), ("off", Off)):
            check_choice(name, getattr(self, name), get_args(choices))
        if self.task is not None:
            check_choice("task", self.task, get_args(Task))
        check_choice("backend", self.backend, BACKENDS)
        if isinstance(self.class_names, str):
            raise SettingError(
                f"class_names={self.class_names!r} is one string; expected a list with a name for each class."
            )
        if self.class_names is not None and self.num_classes not in (None, len(self.class_names)):
            raise SettingError(
                f"class_names has {len(self.class_names)} entries and num_classes={self.num_classes}; expected equal "
                "numbers."
            )
        for name in ("batch_fn", "group_fn", "score_fn"):
            check_callable(name, getattr(self, name))
        if self.group_fn is not None and self.num_classes is None and self.class_names is None:
            raise SettingError("group_fn is given without num_classes; pass num_classes=, the number of groups.")
        if self.roles == "turning_point" and self.off != "zero":
            raise SettingError(
                "off='mean' with roles='turning_point'; the published roles are defined with units at zero."
            )
        resolve_criterion(self.criterion)

    def images_of_each(self, num_classes: int) -> int:
        """Images of each class to use, at most."""
        if isinstance(self.images_per_class, int):
            return self.images_per_class
        return max(_FEWEST_PER_CLASS, min(_MOST_PER_CLASS, IMAGES // max(num_classes, 1)))

    def curve_images_of_each(self, num_classes: int) -> int:
        """Images of each class to measure curves on, at most."""
        if isinstance(self.curve_images, int):
            return self.curve_images
        return max(1, min(_MOST_ON_CURVES, CURVE_IMAGES // max(num_classes, 1)))


def options_of(source: AnalysisOptions, **changes: Any) -> AnalysisOptions:
    """The options of something that inherits them, alone, with some of them changed."""
    values = {field.name: getattr(source, field.name) for field in fields(AnalysisOptions)}
    return AnalysisOptions(**{**values, **changes})


def make_options(given: dict[str, Any], *, caller: str) -> AnalysisOptions:
    """Options out of keyword arguments.

    Raises:
        SettingError: if there is no such option; the message names the one that was probably meant.
    """
    known = [field.name for field in fields(AnalysisOptions)]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(known)}."
            raise SettingError(f"{caller} has no option {name!r}.{meant}")
    return AnalysisOptions(**given)


def takes_options(function: Function) -> Function:
    """Show every option in the signature of a function that takes them as ``**options``."""
    own = [one for one in signature(function).parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
    names = {one.name for one in own}
    more = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(AnalysisOptions)
        if field.name not in names
    ]
    function.__signature__ = signature(function).replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    return function


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        SettingError: if it is none.
    """
    if value not in choices:
        raise SettingError(f"{name}={value!r}; expected one of {', '.join(choices)}.")


def check_callable(name: str, value: Any) -> None:
    """Refuse what should be a function and is none.

    Raises:
        SettingError: if it is neither None nor callable.
    """
    if value is not None and not callable(value):
        raise SettingError(f"{name}={value!r} is a {type(value).__name__}; expected a function, or None.")


def check_name(name: Any) -> None:
    """Refuse a name that cannot stand in keys and folders.

    Raises:
        SettingError: if it is not made of letters, digits and ``_.-`` alone.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*", name) or set(name) == {"."}:
        raise SettingError(f"name={name!r}; expected letters, digits and _.- alone, or an empty string.")
