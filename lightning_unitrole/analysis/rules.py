"""Which task a network does, and what follows for its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lightning_unitrole.ablation.tasks import guess_task, rules_of
from lightning_unitrole.analysis.options import AnalysisOptions, options_of
from lightning_unitrole.data.batches import describe, split_batch
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import map_tensors


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


def first_outputs(runner: Runner, options: AnalysisOptions, inputs: Any, class_names: Sequence[str] | None) -> Any:
    """What the model makes of the inputs of a first batch; its logits alone, where no ``score_fn`` takes all of it.

    Raises:
        DataError: if it is not made to be called with them, or it cannot be told which outputs are the logits.
    """
    try:
        outputs = runner.forward(map_tensors(inputs, torch.clone))
    except (TypeError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        called = "the module and the inputs" if runner.forward_argument == "forward_fn=" else "the inputs"
        raise DataError(
            f"Calling {type(runner.model).__name__} with {describe(inputs)}, the inputs of a batch, failed with "
            f"{type(error).__name__}: {error}. Pass {runner.forward_argument}, a function from {called} to the "
            "outputs, or batch_fn=, one from a batch to (inputs, targets)."
        ) from error
    if options.score_fn is not None:
        return outputs
    names = options.class_names or class_names or ()
    classes = None if options.group_fn is not None else options.num_classes or len(names) or None
    return runner.pick_logits(inputs, outputs, classes=classes)
