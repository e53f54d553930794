"""Seeing in the user's own ``validation_step`` what goes into the network, what comes out, and what is asked of it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_unitrole.ablation.scores import ScoreFn
from lightning_unitrole.ablation.tasks import Task
from lightning_unitrole.analysis.options import AnalysisOptions, options_of
from lightning_unitrole.data.batches import class_indices, split_batch
from lightning_unitrole.errors import DataError, TraceError
from lightning_unitrole.network.losses import (
    BINARY,
    CLASSIFICATION,
    COMPARISONS,
    LossCall,
    LossReachedError,
    LossWatch,
    Path,
    entries,
    entry_at,
)
from lightning_unitrole.network.outputs import named_logits

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReading:
    """How to get outputs and targets out of a batch as the module's own step does.

    Attributes:
        step: the module's step, up to the loss.
        target: where the targets are in a batch; None where the loss has none.
        task: what the loss is one of; None for a loss of pairs or triples.
        score_fn: the loss itself, where outputs are no logits.
        called: the loss, in words.
    """

    step: StepUntilLoss
    target: Path | None
    task: Task | None
    score_fn: ScoreFn | None
    called: str

    def options(self, given: AnalysisOptions) -> AnalysisOptions:
        """The options of an analysis that goes by this reading; what was given goes before."""
        changes: dict[str, Any] = {"batch_fn": self.split, "task": given.task or self.task}
        if self.score_fn is not None:
            changes["score_fn"] = self.score_fn
            if given.group_fn is None:
                same = self.target is not None
                changes |= {"group_fn": _sign if same else _zero, "num_classes": 1 + same, "class_names": None}
        return options_of(given, **changes)

    def forward(self, batch: Any) -> Any:
        """The outputs that the loss is computed from; for a loss of pairs or triples, all that it is computed from."""
        call = self.step(batch)
        return call.outputs if self.score_fn is None else call.args

    def split(self, batch: Any) -> tuple[Any, Any]:
        """The whole batch, which :meth:`forward` takes, and its targets."""
        if self.target is None:
            return batch, torch.zeros(len(next(one for _, one in entries(batch) if isinstance(one, Tensor))))
        found = entry_at(batch, self.target)
        found = found if isinstance(found, Tensor) else torch.as_tensor(found)
        return batch, class_indices(found) if self.task == "multiclass" else found


class StepUntilLoss:
    """Runs a module's ``validation_step`` up to one of the losses that it computes.

    Nothing is logged: neither ``self.log`` nor loggers nor metrics see the call.

    Args:
        pl_module: the module.
        dataloader_idx: which validation loader the batches are said to come from, where the step wants to know.
    """

    def __init__(self, pl_module: pl.LightningModule, *, dataloader_idx: int = 0) -> None:
        self._module = pl_module
        self._until: tuple[str, int] | None = None
        self._args, self._more = _step_arguments(pl_module.validation_step, dataloader_idx)
        self._metrics = [one for one in pl_module.modules() if isinstance(one, (Metric, MetricCollection))]

    def watch(self, batch: Any) -> LossWatch:
        """Run the whole step, and note its losses."""
        watch = LossWatch(batch)
        with self._quiet(), watch:
            self._module.validation_step(batch, *self._args, **self._more)
        return watch

    def until(self, call: LossCall) -> None:
        """Break off at this loss from now on."""
        self._until = call.kind, call.place

    def __call__(self, batch: Any) -> LossCall:
        """The loss, before it is computed.

        Raises:
            TraceError: if the step does not compute it.
        """
        try:
            with self._quiet(), LossWatch(batch, until=self._until):
                self._module.validation_step(batch, *self._args, **self._more)
        except LossReachedError as reached:
            return reached.call
        raise TraceError(
            f"validation_step did not compute the {self._until and self._until[0]} that it computed before. Pass "
            "batch_fn=, a function from a batch to (inputs, targets), and forward_fn=, one from the module and the "
            "inputs to the logits."
        )

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        module, trainer = self._module, self._module.trainer
        loggers = trainer.loggers
        silenced: list[tuple[Any, str]] = [(module, "log"), (module, "log_dict")]
        silenced += [(metric, name) for metric in self._metrics for name in ("forward", "update")]
        before = [(one, name, vars(one).get(name)) for one, name in silenced]
        try:
            trainer.loggers = [DummyLogger() for _ in loggers]
            for one, name in silenced:
                object.__setattr__(one, name, _nothing)
            yield
        finally:
            trainer.loggers = loggers
            for one, name, value in before:
                if value is None:
                    object.__delattr__(one, name)
                else:
                    object.__setattr__(one, name, value)


def _step_arguments(step: Callable[..., Any], dataloader_idx: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """What a step is given besides the batch, as Lightning does: its indices, whatever they are called."""
    given = {"batch_idx": 0, "dataloader_idx": dataloader_idx}
    parameters = list(inspect.signature(step).parameters.values())
    named = {one.name: given.pop(one.name) for one in parameters if one.name in given}
    required = [one for one in parameters[1:] if one.kind is one.POSITIONAL_OR_KEYWORD and one.default is one.empty]
    own = [one.name for one in required if one.name not in named]
    named |= dict(zip(own, given.values(), strict=False))
    takes_any = any(one.kind is one.VAR_POSITIONAL for one in parameters) and not named
    return (0,) if takes_any else (), named


def _sign(targets: Any) -> Tensor:
    return (torch.as_tensor(targets) > 0).flatten().long()


def _zero(targets: Any) -> Tensor:
    return torch.zeros(len(targets), dtype=torch.int64)


def _nothing(*args: Any, **kwargs: Any) -> Tensor:
    return torch.zeros(())


def read_step(pl_module: pl.LightningModule, batch: Any, *, dataloader_idx: int = 0) -> StepReading | str | None:
    """How the module's ``validation_step`` gets from a batch to its loss.

    Call it in an undisturbed model.

    Returns:
        The reading; None where calling the module says it all; or in a sentence why the step says nothing.

    Args:
        pl_module: the module, attached to its trainer.
        batch: a batch on the module's device.
        dataloader_idx: which validation loader the batch is said to come from.
    """
    if getattr(pl_module.validation_step, "__module__", "").endswith("lightning.core.module"):  # Lightning's own
        return None
    step = StepUntilLoss(pl_module, dataloader_idx=dataloader_idx)
    calls: list[tuple[tuple[Any, ...], Any]] = []
    handle = pl_module.register_forward_hook(lambda module, args, output: calls.append((args, output)))
    try:
        watch = step.watch(batch)
    except Exception as error:  # a step may raise what it likes, for instance on a training batch
        _log.debug("validation_step could not be read.", exc_info=error)
        return f"validation_step fails on a training batch with {type(error).__name__}: {error}."
    finally:
        handle.remove()
    call = watch.preferred
    if call is None:
        return "validation_step computes none of torch's losses, by which outputs and labels would be known."
    if _says_it_all(calls, call, batch):
        return None
    target = _path_of(call, batch)
    if target is None and call.kind != "triplet_margin_loss":
        return f"validation_step computes {call.kind} of targets that are not in the batch."
    step.until(call)
    own = _own_score(call) if call.kind in COMPARISONS else None
    return StepReading(step, target, _task_of(call), own, call.kind)


def _says_it_all(calls: list[tuple[tuple[Any, ...], Any]], call: LossCall, batch: Any) -> bool:
    """Whether the step does no more than call the module on the inputs and compute the loss from what it returns."""
    try:
        inputs, targets = split_batch(batch)
        outputs = calls[0][1] if len(calls) == 1 else None
        outputs = outputs if isinstance(outputs, Tensor) else named_logits(outputs)
    except DataError:
        return False
    return (
        outputs is not None
        and call.kind in CLASSIFICATION
        and outputs is call.outputs
        and len(calls[0][0]) == 1
        and calls[0][0][0] is inputs
        and targets is call.target
    )


def _path_of(call: LossCall, batch: Any) -> Path | None:
    """Where in a batch the target of a loss comes from."""
    if len(call.sources) == 1:
        return next(iter(call.sources))
    target = call.target
    if not isinstance(target, Tensor):
        return None
    for path, entry in entries(batch):
        found = torch.as_tensor(entry)
        if found.numel() == target.numel() and torch.equal(
            found.flatten().double().cpu(), target.flatten().double().cpu()
        ):
            return path
    return None


def _task_of(call: LossCall) -> Task | None:
    outputs = call.outputs
    if call.kind in CLASSIFICATION:
        return "segmentation" if outputs.dim() > 2 else "multiclass"
    if call.kind in BINARY:
        if outputs.dim() > 2:
            return "segmentation" if outputs.shape[1] == 1 else None
        return "binary" if outputs[0].numel() == 1 else "multilabel"
    return None if call.kind in COMPARISONS else "regression"


def _own_score(call: LossCall) -> ScoreFn:
    """The loss of each image, and minus the same as its score."""
    function = getattr(torch.nn.functional, call.kind)
    options = {name: value for name, value in call.kwargs.items() if not isinstance(value, Tensor)}

    def score(outputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        loss = function(*outputs, **{**options, "reduction": "none"})
        loss = loss.reshape(len(loss), -1).mean(1)
        return loss, -loss

    return score
