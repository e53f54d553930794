"""The images that an analysis looks at: a probe, how many of each class, and who runs the model on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from lightning_unitrole.data.batches import BatchFn, split_batch
from lightning_unitrole.data.probe import KEPT_BYTES, Probe
from lightning_unitrole.network.runner import Runner

_KEPT_FOR_CURVES = 2**30


class Images(NamedTuple):
    """A batch of images on the model's device.

    Attributes:
        inputs: what the model is called with.
        targets: the batch's targets, as its source gives them.
        groups: ``[B]`` int64, class of each image.
        halves: ``[B]`` int64, 0 for the even and 1 for the odd images of each class.
    """

    inputs: Any
    targets: Any
    groups: Tensor
    halves: Tensor


@dataclass(frozen=True)
class Sample:
    """Some images of each class; iterating it yields this process's share of them, batch by batch.

    Attributes:
        probe: where the images come from.
        quota: ``[C]`` int64, the images of each class are those with places below this,
        start: ``[C]`` int64, from this on.
        runner: runs the model, and says which share of the images this process has.
        batch_fn: takes batches apart.
        kept_bytes: how large they may be to stay in memory after they were read for the first time.
    """

    probe: Probe
    quota: Tensor
    start: Tensor
    runner: Runner
    batch_fn: BatchFn | None = None
    kept_bytes: int = KEPT_BYTES

    @property
    def images(self) -> Tensor:
        """``[C]`` int64, number of images of each class, in all processes."""
        return self.quota - self.start

    @property
    def num_groups(self) -> int:
        """Number of classes."""
        return len(self.quota)

    def __iter__(self) -> Iterator[Images]:
        runner = self.runner
        batches = self.probe.batches(
            self.quota, start=self.start, shard=runner.shard, shards=runner.shards, kept_bytes=self.kept_bytes
        )
        for batch in batches:
            inputs, targets = split_batch(runner.transfer(batch.batch), self.batch_fn)
            yield Images(inputs, targets, batch.groups.to(runner.device), batch.ranks.to(runner.device) % 2)

    def to_keep(self) -> Sample:
        """The same where curves are measured: images that are read again and again stay in memory up to 1 GiB."""
        return replace(self, kept_bytes=_KEPT_FOR_CURVES)

    def release(self) -> None:
        """Free the images that are kept in memory."""
        self.probe.release()


class Samples(NamedTuple):
    """The images of one analysis.

    Attributes:
        train: training images.
        val: validation images, as many of each class.
        curves: validation images that curves are measured on, none of them in ``val`` where there are enough.
        held_out: whether that is so.
    """

    train: Sample
    val: Sample
    curves: Sample
    held_out: bool
