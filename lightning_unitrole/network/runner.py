"""How a model is run: where its data go, what it is called with, and which other processes share the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.network.isolation import undisturbed
from lightning_unitrole.network.losses import entry_at
from lightning_unitrole.network.outputs import find_logits
from lightning_unitrole.network.structures import map_tensors

Forward = Callable[[Any], Any]
Advance = Callable[[], None]
Progress = Callable[[int, str], AbstractContextManager[Advance]]


@contextmanager
def no_progress(total: int, description: str) -> Iterator[Advance]:
    """A progress bar that shows nothing."""
    yield lambda: None


class Runner:
    """Runs a plain model in this process, where its parameters lie.

    Args:
        model: any module.
        forward: called with the inputs instead of ``model``.
        progress: context manager around long work, from a number of steps and a description to a function that is
            called after each step.

    Attributes:
        model: the model.
        device: where its first parameter lies; the CPU if it has none.
        shard: index of this process.
        shards: number of processes that share the images.
        forward_argument: name of the argument by which a user says how the model is called.
    """

    shard = 0
    shards = 1
    forward_argument = "forward="

    def __init__(self, model: nn.Module, *, forward: Forward | None = None, progress: Progress = no_progress) -> None:
        if forward is None:
            model = getattr(model, "_orig_mod", model)  # what torch.compile made, whose layers have longer names
        self.model = model
        self.progress = progress
        self._forward: Forward = model if forward is None else forward

    @property
    def device(self) -> torch.device:
        """Where the first parameter of the model lies; the CPU if it has none."""
        return next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))

    def forward(self, inputs: Any) -> Any:
        """What the model makes of the inputs of a batch."""
        return self._forward(inputs)

    def pick_logits(self, inputs: Any, outputs: Any, *, classes: int | None = None) -> Any:
        """The logits among what the model returned, which :meth:`forward` returns alone from now on.

        Raises:
            DataError: if it cannot be told which they are; see :func:`~lightning_unitrole.network.outputs.find_logits`.
        """
        path = find_logits(self.forward, inputs, outputs, classes=classes, argument=self.forward_argument)
        if path is None:
            return outputs
        forward = self._forward
        self._forward = lambda inputs: entry_at(forward(inputs), path)
        return entry_at(outputs, path)

    def transfer(self, batch: Any) -> Any:
        """The batch, on the model's device."""
        device = self.device
        return map_tensors(batch, lambda tensor: tensor.to(device))

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over processes."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """``values`` ``[B]`` of every process as ``[processes, B]``."""
        return values.unsqueeze(0)

    def undisturbed(self, *, parameters: bool = False) -> AbstractContextManager[None]:
        """Evaluate the model inside this context and find everything as it was after it.

        Args:
            parameters: refuse a model whose forward pass changes its parameters.
        """
        return undisturbed(self.model, parameters=parameters)
