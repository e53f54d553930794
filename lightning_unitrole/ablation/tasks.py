"""What counts as right, for each kind of task, with torchmetrics' conventions for outputs and targets.

A task says three things of each image: its loss, its score, and its margin, which contributions are measured of; and
which group an image belongs to. All functions here work row by row, so that images may be taken out of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_unitrole.ablation.scores import ScoreFn, first_tensor, wide
from lightning_unitrole.data.batches import GroupFn, describe, sums_to_one
from lightning_unitrole.errors import DataError

Task = Literal["multiclass", "binary", "multilabel", "regression", "segmentation"]

IGNORED = (-100, 255)
"""Labels of pixels that do not count, as in ``F.cross_entropy`` and in the usual segmentation data."""
NO_LABEL = "none"
"""Name of the group of images that have none of the labels."""
_THRESHOLD = 0.5


@dataclass(frozen=True)
class TaskRules:
    """How a task is scored and grouped.

    Attributes:
        score_fn: see :data:`~lightning_unitrole.ablation.scores.ScoreFn`; None for single-label classification.
        group_fn: from targets to ``[B]`` groups; None where targets are class indices.
        num_groups: number of groups.
        group_names: a name for each; None for their numbers.
        grouped: what images are grouped by, in words.
        measure: what the score is, in words.
    """

    score_fn: ScoreFn | None
    group_fn: GroupFn | None
    num_groups: int
    group_names: Sequence[str] | None = None
    grouped: str = "class"
    measure: str = "accuracy"

    def line(self, task: str) -> str:
        """What is measured, for a reader."""
        return (
            f"Unit roles: the task is taken to be {task}; the score is {self.measure}, and images are grouped by "
            f"{self.grouped}. Pass task= or score_fn= if that is wrong."
        )


def guess_task(outputs: Any, targets: Any) -> Task | None:
    """The task that outputs and targets of a batch look like; None where they look like none.

    Args:
        outputs: what the model returned, for any number of images.
        targets: the batch's targets, of the same images or of more.

    Example:
        >>> guess_task(torch.zeros(2, 10), torch.tensor([3, 7]))
        'multiclass'
        >>> guess_task(torch.zeros(2, 1), torch.tensor([1.0, 0.0]))
        'binary'
        >>> guess_task(torch.zeros(2, 3), torch.tensor([[1, 0, 1], [0, 0, 1]]))
        'multilabel'
    """
    logits = first_tensor(outputs)
    try:
        found = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    counts = bool(((found == 0) | (found == 1)).all())
    width = logits[0].numel() if len(logits) else 0
    flat = found[0].numel() == 1 if found.dim() > 1 and len(found) else found.dim() == 1
    if logits.dim() > 2:
        spatial = found.dim() in (logits.dim() - 1, logits.dim()) and found.shape[-2:] == logits.shape[-2:]
        if spatial and (not found.is_floating_point() or (logits.shape[1] == 1 and counts)):
            return "segmentation"
        return "regression" if found.shape[1:] == logits.shape[1:] and found.is_floating_point() else None
    if width == 1:
        return ("binary" if counts else "regression" if found.is_floating_point() else None) if flat else None
    if flat:
        return "multiclass" if not found.is_floating_point() else None
    if found.shape[1:] != logits.shape[1:]:
        return None
    if found.is_floating_point() and sums_to_one(found):
        return "multiclass"
    return "multilabel" if counts else "regression" if found.is_floating_point() else None


def rules_of(task: Task, outputs: Any, targets: Any) -> TaskRules:
    """How images of a task are scored and grouped.

    Args:
        task: the task.
        outputs: what the model returned for a batch.
        targets: targets of some images; of a regression their spread is the unit of the score.
    """
    width = int(first_tensor(outputs).shape[1]) if first_tensor(outputs).dim() > 1 else 1
    if task == "binary":
        return TaskRules(_binary, lambda given: _flat(given).long(), 2, grouped="label")
    if task == "multilabel":
        names = [*map(str, range(width)), NO_LABEL]
        return TaskRules(
            _multilabel,
            _first_label,
            width + 1,
            names,
            "the first label that they have",
            "the share of the labels that are right",
        )
    if task == "segmentation":
        return TaskRules(_segmentation, _most_pixels, max(width, 2), None, "the class of most pixels", "pixel accuracy")
    if task == "regression":
        return TaskRules(
            _Regression.of(targets), _one_group, 1, ["all"], "nothing", "the share of the targets' variance explained"
        )
    return TaskRules(None, None, width)


def _flat(targets: Any) -> Tensor:
    """``[B]`` out of ``[B]`` or ``[B, 1]``."""
    found = torch.as_tensor(targets)
    return found.flatten(1).squeeze(1) if found.dim() > 1 else found


def _like(outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Outputs and targets of one shape ``[B, K]``, both of high precision."""
    logits = wide(first_tensor(outputs))
    found = torch.as_tensor(targets, device=logits.device).to(logits.dtype)
    if logits[:1].numel() != found[:1].numel() or len(logits) != len(found):
        raise DataError(
            f"The model returned {describe(logits)} for targets that are {describe(found)}; they must agree."
        )
    return logits.reshape(len(logits), -1), found.reshape(len(found), -1)


def _binary(outputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross-entropy of a logit, whether the label is right, and the label's logit; of labels, their mean."""
    logits, labels = _like(outputs, targets)
    loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)
    right = ((logits > 0) == (labels > _THRESHOLD)).to(logits.dtype).mean(1)
    return loss, right, ((2 * labels - 1) * logits).mean(1)


_multilabel = _binary


def _first_label(targets: Any) -> Tensor:
    """The first label that an image has, or the number of labels where it has none."""
    labels = torch.as_tensor(targets) > _THRESHOLD
    return torch.where(labels.any(1), labels.long().argmax(1), labels.shape[1])


def _segmentation(outputs: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over the pixels that count of cross-entropy, of whether the class is right, and of the margin."""
    logits, labels = wide(first_tensor(outputs)), _pixels(targets, first_tensor(outputs).device)
    if logits.shape[1] == 1:  # one logit is that of class 1 against class 0
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    counted = ~torch.isin(labels, torch.tensor(IGNORED, device=labels.device))
    labels = torch.where(counted, labels, 0)
    own = logits.gather(1, labels.unsqueeze(1))
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf")).logsumexp(1)

    def mean(values: Tensor) -> Tensor:
        values, weights = values.flatten(1), counted.flatten(1)
        return torch.where(weights, values, 0).sum(1) / weights.sum(1).clamp(min=1)

    loss = mean(logits.logsumexp(1) - own.squeeze(1))
    return loss, mean((logits.argmax(1) == labels).to(logits.dtype)), mean(own.squeeze(1) - others)


def _pixels(targets: Any, device: torch.device) -> Tensor:
    """``[B, H, W]`` class indices out of these or ``[B, 1, H, W]``."""
    labels = torch.as_tensor(targets, device=device)
    return (labels.squeeze(1) if labels.dim() > 3 and labels.shape[1] == 1 else labels).long()


def _most_pixels(targets: Any) -> Tensor:
    """The class of most pixels of an image, among those that count."""
    labels = _pixels(targets, torch.as_tensor(targets).device).flatten(1)
    counted = ~torch.isin(labels, torch.tensor(IGNORED, device=labels.device))
    kinds = int(labels[counted].max()) + 1 if bool(counted.any()) else 1
    votes = torch.zeros(len(labels), kinds, dtype=torch.int64, device=labels.device)
    return votes.scatter_add_(1, torch.where(counted, labels, 0), counted.long()).argmax(1)


def _one_group(targets: Any) -> Tensor:
    return torch.zeros(len(targets), dtype=torch.int64)


@dataclass(frozen=True)
class _Regression:
    """Squared error, and the share of the targets' spread that is explained: 1 is perfect, 0 what their mean is."""

    spread: float

    @classmethod
    def of(cls, targets: Any) -> _Regression:
        found = torch.as_tensor(targets).double()
        found = found.reshape(len(found), -1)
        return cls(max(float((found - found.mean(0)).square().mean()), 1e-12))

    def __call__(self, outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        predicted, wanted = _like(outputs, targets)
        loss = (predicted - wanted).square().mean(1)
        return loss, 1 - loss / self.spread
