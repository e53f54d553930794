"""Tasks: their scores are torchmetrics' on the same outputs and targets, and they are told from both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import functional as metrics

from lightning_unitrole.ablation.scores import margins
from lightning_unitrole.ablation.tasks import guess_task, rules_of
from lightning_unitrole.data.batches import batch_groups, class_indices
from lightning_unitrole.errors import DataError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BITS, CLASSES = (draw(20, seed=1) > 0).long(), draw(20, 6, 6, seed=2).abs().mul(2).long().clamp(max=2)


@pytest.mark.parametrize(
    ("outputs", "targets", "task"),
    [
        (draw(2, 10), torch.tensor([3, 9]), "multiclass"),
        (draw(2, 10), [3, 9], "multiclass"),
        (draw(2, 10), draw(8, 10).softmax(1), "multiclass"),
        ({"logits": draw(2, 10)}, torch.tensor([[3], [9]]), "multiclass"),
        (draw(2), torch.tensor([0, 1]), "binary"),
        (draw(2, 1), torch.tensor([[0.0], [1.0]]), "binary"),
        (draw(2, 1), torch.tensor([0.3, 1.0]), "regression"),
        (draw(2, 3), torch.tensor([[1, 0, 1], [0, 0, 0]]), "multilabel"),
        (draw(2, 3), draw(2, 3), "regression"),
        (draw(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long), "segmentation"),
        (draw(2, 1, 4, 4), torch.ones(2, 1, 4, 4), "segmentation"),
        (draw(2, 3, 4, 4), draw(2, 3, 4, 4), "regression"),
        (draw(2, 3), ["a", "b"], None),
        (draw(2, 3), draw(2, 7), None),
    ],
)
def test_the_task_is_told_from_outputs_and_targets(outputs: Any, targets: Any, task: str | None) -> None:
    assert guess_task(outputs, targets) == task


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "metric"),
    [
        ("binary", draw(20, 1), BITS, lambda p, t: metrics.accuracy(p.sigmoid().flatten(), t, task="binary")),
        (
            "multilabel",
            draw(20, 5),
            (draw(20, 5, seed=3) > 0).float(),
            lambda p, t: metrics.accuracy(p.sigmoid(), t.long(), task="multilabel", num_labels=5, average="micro"),
        ),
        (
            "segmentation",
            draw(20, 3, 6, 6),
            CLASSES,
            lambda p, t: metrics.accuracy(p, t, task="multiclass", num_classes=3, average="micro"),
        ),
        ("regression", draw(20, 1), draw(20, seed=4), lambda p, t: metrics.r2_score(p.flatten(), t)),
    ],
)
def test_scores_are_those_of_torchmetrics(task: Any, outputs: Tensor, targets: Tensor, metric: Any) -> None:
    rules = rules_of(task, outputs, targets)
    assert rules.score_fn is not None
    assert rules.group_fn is not None
    score = rules.score_fn(outputs, targets)[1]
    assert score.shape == (20,)
    assert float(score.mean()) == pytest.approx(float(metric(outputs, targets)), abs=1e-5)
    groups = batch_groups(targets, 20, rules.num_groups, rules.group_fn)
    assert groups.shape == (20,)


def test_margins_of_two_classes_agree_whichever_way_they_are_written() -> None:
    logits = draw(20, 1)
    as_two = margins(torch.cat([torch.zeros(20, 1), logits], 1), BITS, None)
    torch.testing.assert_close(margins(logits, BITS, rules_of("binary", logits, BITS).score_fn), as_two)
    image = logits[:, :, None, None]
    as_pixels = margins(image, BITS[:, None, None], rules_of("segmentation", image, BITS[:, None, None]).score_fn)
    torch.testing.assert_close(as_pixels, as_two)


def test_pixels_that_are_ignored_do_not_count() -> None:
    logits, labels = draw(20, 3, 6, 6), CLASSES.clone()
    labels[:, :3] = 255
    score_fn = rules_of("segmentation", logits, labels).score_fn
    assert score_fn is not None
    for whole, part in zip(score_fn(logits, labels), score_fn(logits[:, :, 3:], CLASSES[:, 3:]), strict=True):
        torch.testing.assert_close(whole, part)


def test_soft_labels_count_as_their_likeliest_class() -> None:
    soft = 0.8 * F.one_hot(BITS, 3) + 0.2 / 3
    assert torch.equal(class_indices(soft), BITS)
    torch.testing.assert_close(margins(draw(20, 3), soft, None), margins(draw(20, 3), BITS, None))
    assert torch.equal(batch_groups(soft, 20, 3), BITS)


def test_outputs_that_do_not_fit_the_targets_are_refused() -> None:
    score_fn = rules_of("binary", draw(20, 1), BITS).score_fn
    assert score_fn is not None
    with pytest.raises(DataError, match=r"shape \[20, 3\] for targets"):
        score_fn(draw(20, 3), BITS)
