"""Which task a network does, and what follows for its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lightning_unitrole.ablation.tasks import guess_task, rules_of
from lightning_unitrole.analysis.options import AnalysisOptions, options_of
from lightning_unitrole.data.batches import split_batch


class Rules(NamedTuple):
    """How a network is judged.

    Attributes:
        options: with the functions of the task, where it is not single-label classification.
        line: what the task is taken to be, for a reader; None for single-label classification.
        score: what the score is called.
    """

    options: AnalysisOptions
    line: str | None
    score: str


def with_rules(options: AnalysisOptions, outputs: Any, targets: Any, more: Callable[[], Any] | None = None) -> Rules:
    """How a network is judged that returns such outputs for such targets.

    Args:
        options: what the user gave; a ``score_fn`` goes before everything.
        outputs: what the model returned for a small batch.
        targets: the targets of that batch.
        more: reads a larger batch.
    """
    if options.score_fn is not None:
        return Rules(options, None, "score")
    task = options.task or guess_task(outputs, targets)
    if task in (None, "multiclass"):
        return Rules(options, None, "accuracy")
    if more is not None:
        _, targets = split_batch(more(), options.batch_fn)
        task = options.task or guess_task(outputs, targets)
    if task in (None, "multiclass"):
        return Rules(options, None, "accuracy")
    rules = rules_of(task, outputs, targets)
    changes: dict[str, Any] = {"task": task, "score_fn": rules.score_fn}
    if options.group_fn is None:
        names = options.class_names or rules.group_names
        number = options.num_classes or (len(names) if names else rules.num_groups)
        changes |= {"group_fn": rules.group_fn, "num_classes": number, "class_names": names}
    return Rules(options_of(options, **changes), rules.line(task), rules.measure)
