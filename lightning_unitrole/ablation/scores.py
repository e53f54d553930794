"""Loss and scores of each image, from what a model returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_unitrole.data.batches import class_indices
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.outputs import named_logits
from lightning_unitrole.network.structures import tensors_in

ScoreFn = Callable[[Any, Any], tuple[Tensor, ...]]
"""From the model's outputs and the targets of N images to the loss ``[N]`` and the score ``[N]`` of each image; a third
entry ``[N]``, if there is one, is the margin that contributions are measured of, which is minus the loss without it."""

_TOP = 5


def first_tensor(outputs: Any) -> Tensor:
    """The logits among a model's outputs: an entry ``"logits"`` or ``"out"``, or else the first tensor.

    Args:
        outputs: a tensor, or nested tuples, lists, mappings and dataclasses.

    Raises:
        DataError: if there is no tensor in it.
    """
    named = named_logits(outputs)
    found = next(tensors_in(outputs), None) if named is None else named
    if found is None:
        raise DataError(
            f"The model returned {type(outputs).__name__} without a tensor. Pass forward=, or forward_fn= of the "
            "callbacks, to pick the logits."
        )
    return found


def classification_score(outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """The default score: cross-entropy and whether the largest logit is that of the label.

    Args:
        outputs: logits ``[N, C]``, or a structure with them, see :func:`first_tensor`.
        targets: ``[N]`` class indices; of soft labels ``[N, C]`` the likeliest class counts.

    Returns:
        Loss ``[N]`` in nats and score ``[N]``, 0 or 1; both float64 where the device has it.
    """
    logits = wide(first_tensor(outputs))
    targets = _labels(targets, logits)
    return F.cross_entropy(logits, targets, reduction="none"), (logits.argmax(1) == targets).to(logits.dtype)


def score_images(outputs: Any, targets: Any, score_fn: ScoreFn | None, num_rows: int) -> Tensor:
    """``[N, 3]`` loss, score and top-5 of each image; top-5 is NaN with fewer than 6 classes or with a ``score_fn``.

    Raises:
        DataError: if ``score_fn`` does not return a loss and a score for each image.
    """
    if score_fn is None:
        logits = first_tensor(outputs)
        loss, score = classification_score(logits, targets)
        top5 = torch.full_like(loss, float("nan"))
        if logits.shape[1] > _TOP:
            labels = _labels(targets, logits)
            top5 = (logits.topk(_TOP, dim=1).indices == labels.unsqueeze(1)).any(1).to(loss.dtype)
        return torch.stack([loss, score, top5], dim=1)
    pair = score_fn(outputs, targets)[:2]
    shapes = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in pair]
    if shapes != [[num_rows], [num_rows]]:
        raise DataError(
            f"score_fn returned {' and '.join(map(str, shapes))} for {num_rows} images; expected a loss [{num_rows}] "
            f"and a score [{num_rows}]: one number an image, not their mean."
        )
    loss, score = (wide(part) for part in pair)
    return torch.stack([loss, score, torch.full_like(loss, float("nan"))], dim=1)


def check_classification(outputs: Any, targets: Any, num_rows: int) -> None:
    """Refuse logits and labels that the default score cannot use.

    Raises:
        DataError: if they do not fit; the message says what was found and what was expected.
    """
    advice = "For another task than single-label classification pass task= or score_fn=."
    logits = first_tensor(outputs)
    if isinstance(targets, (list, tuple)) and all(isinstance(target, int) for target in targets):
        targets = torch.tensor(targets)
    targets = class_indices(targets)
    if logits.dim() != 2 or logits.shape[0] != num_rows:
        raise DataError(
            f"The model returned a tensor of shape {list(logits.shape)} for {num_rows} images; expected logits "
            f"[{num_rows}, classes]. Pass forward=, or forward_fn= of the callbacks, to pick them. {advice}"
        )
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dim() != 1:
        found = f"{targets.dtype} {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
        raise DataError(f"The targets of a batch are {found}; expected [{num_rows}] class indices. {advice}")
    if len(targets) != num_rows:
        raise DataError(f"A batch has {num_rows} images and {len(targets)} targets; expected one target an image.")
    if num_rows and not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
        raise DataError(
            f"The targets hold labels from {int(targets.min())} to {int(targets.max())}; expected 0 to "
            f"{logits.shape[1] - 1}, as the model tells {logits.shape[1]} classes apart."
        )


def margins(outputs: Any, targets: Any, score_fn: ScoreFn | None) -> Tensor:
    """``[N]`` margin of each image: the label's logit minus the log-sum-exp of the others.

    With a ``score_fn`` it is its margin, or else minus its loss. Unlike the cross-entropy, which is near zero on
    training images whatever a unit does there, the margin keeps counting.

    Args:
        outputs: logits ``[N, C]``, or a structure with them; of one class alone the margin is the logit.
        targets: ``[N]`` class indices.
        score_fn: see :data:`ScoreFn`.
    """
    if score_fn is not None:
        found = score_fn(outputs, targets)
        return wide(found[2]) if len(found) > 2 else -wide(found[0])
    logits = wide(first_tensor(outputs))
    labels = _labels(targets, logits).unsqueeze(1)
    own = logits.gather(1, labels).squeeze(1)
    if logits.shape[1] == 1:
        return own
    return own - logits.scatter(1, labels, float("-inf")).logsumexp(1)


def _labels(targets: Any, logits: Tensor) -> Tensor:
    return torch.as_tensor(class_indices(targets), device=logits.device).long()


def wide(values: Tensor) -> Tensor:
    """The values in the highest precision that their device has."""
    return values.float() if values.device.type == "mps" else values.double()
