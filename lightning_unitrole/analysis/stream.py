"""Recording a validation loop as its batches pass, without a forward of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.data.batches import batch_groups, count_images, ranks_in_group, split_batch, within
from lightning_unitrole.data.probe import Probe
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer

_CHECK_EVERY = 16
"""Batches between two looks at whether every class is full; on a GPU each look waits for the device."""


class LiveRecording:
    """Taps the maps of a model while somebody else runs it over a data loader from beginning to end.

    Of each class only the first images of the dataset are recorded, the same ones whatever the number of processes.
    What goes wrong at a tap ends the recording, not the forward pass; :meth:`hand_over` raises it.

    Args:
        session: the analysis whose layers are tapped.
        quota: ``[C]`` int64, images to record of each class.
        loader: the loader, of which process ``i`` of ``n`` sees the images ``i``, ``i + n``, and so on.

    Attributes:
        recorders: what was recorded, by layer.
    """

    def __init__(self, session: AnalysisSession, quota: Tensor, loader: DataLoader[Any]) -> None:
        self.session, self.loader = session, loader
        self.recorders = session.observer.recorders()
        device = session.runner.device
        with torch.inference_mode(False):
            self._quota = quota.to(device)
            self._seen = torch.zeros_like(self._quota)
            self._unknown = torch.zeros((), dtype=torch.int64, device=device)
        self._chosen: list[Tensor] = []
        self._groups: Tensor | None = None
        self._halves: Tensor | None = None
        self._tapped: set[str] = set()
        self._position = 0
        self._batches = 0
        self._short = False
        self._stopped = False
        self._error: Exception | None = None
        self._tap = UnitTap(session.runner.model, session.layers, self._take, on_error=self._fail)
        self._tap.attach()

    def expect(self, batch: Any) -> None:
        """Say that a batch is coming; None for one that is not to be recorded.

        Raises:
            DataError: if the batch has no usable labels.
        """
        self._groups = None
        if batch is None or self._stopped or self._error is not None:
            return
        options, runner = self.session.options, self.session.runner
        inputs, targets = split_batch(batch, options.batch_fn)
        groups = batch_groups(targets, count_images(inputs), self.session.num_classes, options.group_fn)
        if self._short:
            raise DataError(
                "A validation batch that was not the last one was short of images, so they cannot be told apart by "
                "their position. Does collate_fn drop some? Drop them from the dataset instead."
            )
        self._short = len(groups) != self.loader.batch_size
        every = runner.gather(groups.to(runner.device)).T.flatten()
        index = self._position + torch.arange(len(every), device=every.device)
        # Where processes share a dataset unevenly, its first images are dealt out again to fill the last batch.
        every = torch.where(index < len(self.loader.dataset), every, -1)  # type: ignore[arg-type]
        self._unknown += (every >= self.session.num_classes).sum()
        ranks = ranks_in_group(every, self._seen)
        chosen = torch.where(within(ranks, every, torch.zeros_like(self._quota), self._quota), every, -1)
        self._chosen.append(chosen)
        self._position += len(every)
        self._groups = chosen[runner.shard :: runner.shards]
        self._halves = ranks[runner.shard :: runner.shards] % 2
        self._tapped.clear()
        self._tap.reset()
        self._batches += 1
        if runner.device.type == "cpu" or self._batches % _CHECK_EVERY == 0:
            self._detach_when_full()

    def stop(self) -> None:
        """Remove every hook. Safe to call at any time, and more than once."""
        self._stopped = True
        self._tap.remove()
        self._groups = None

    def hand_over(self, probe: Probe) -> None:
        """Tell a probe of the same dataset which images were recorded.

        Raises:
            DataError: if a layer saw no maps, or labels were out of range.
        """
        if self._error is not None:
            raise self._error
        if int(self._unknown):
            raise DataError(
                f"{int(self._unknown)} validation labels are above {self.session.num_classes - 1}, but the model "
                f"tells {self.session.num_classes} classes apart. Pass num_classes= if that number is wrong."
            )
        chosen = torch.cat(self._chosen).cpu() if self._chosen else torch.empty(0, dtype=torch.int64)
        indices = (chosen >= 0).nonzero().flatten()
        probe.remember(indices, chosen[indices])
        for name, recorder in self.recorders.items():
            if len(indices) and not self.session.runner.total(recorder.images).any():
                raise DataError(
                    f"Layer {name!r} produced no maps in this validation run. Does validation_step run the model, and "
                    "not a copy of it?"
                )

    def _take(self, layer: UnitLayer, maps: Tensor) -> None:
        if self._groups is None or layer.name in self._tapped:
            return
        if len(maps) != len(self._groups):
            raise DataError(
                f"Layer {layer.name!r} produced maps for {len(maps)} images in a batch of {len(self._groups)}; "
                "expected one map of each unit for each image."
            )
        self._tapped.add(layer.name)
        assert self._halves is not None
        self.recorders[layer.name].update(maps, self._groups, self._halves)

    def _fail(self, error: Exception) -> None:
        # The hooks stay until the next batch: they cannot be removed while they run.
        self._error, self._groups = self._error or error, None

    def _detach_when_full(self) -> None:
        # The quota counts the batch that is coming, so the hooks may go only with the next one.
        if self._groups is not None and not bool((self._groups >= 0).any()) and bool((self._seen >= self._quota).all()):
            self.stop()
