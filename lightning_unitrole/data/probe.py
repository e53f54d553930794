"""Class-balanced images out of whatever users train on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unitrole.data.batches import BatchFn, GroupFn, batch_groups, count_images, first_of_each, split_batch
from lightning_unitrole.data.loaders import (
    DataSource,
    as_batches,
    has_indices,
    own_loader,
    sampled_indices,
    stored_labels,
)

_CACHE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class ProbeBatch:
    """Some images of a probe: the batch as the source collates it, and ``groups`` ``[B]`` int64 on the CPU."""

    batch: Any
    groups: Tensor

    def select(self, rows: Tensor) -> ProbeBatch:
        """The images at ``rows``."""
        size = len(self.groups)

        def pick(values: Tensor) -> Tensor:
            per_image = values.ndim > 0 and len(values) == size
            return values[rows.to(values.device)] if per_image else values

        return ProbeBatch(apply_to_collection(self.batch, Tensor, pick), self.groups[rows])


class Probe:
    """The first images of every group of a data source, in the source's own order, read again at will.

    Reading goes through iterators of the probe's own. Where the source is a map-style dataset only the wanted images
    are read, and a random augmentation draws the same numbers for an image whenever and wherever it is read.

    Args:
        source: a ``DataLoader``, a map-style ``Dataset``, or an iterable of batches that can be iterated repeatedly.
        name: what to call the source in messages, for example ``"training"``.
        num_groups: number ``C`` of classes or groups.
        images_per_group: images wanted of each.
        batch_fn: see :func:`split_batch`.
        group_fn: see :func:`batch_groups`.
        seed: seed of the augmentation.

    Raises:
        SettingError: if the source cannot be read more than once.
    """

    def __init__(
        self,
        source: DataSource,
        *,
        name: str,
        num_groups: int,
        images_per_group: int,
        batch_fn: BatchFn | None = None,
        group_fn: GroupFn | None = None,
        seed: int = 0,
    ) -> None:
        self.source = as_batches(source, name=name)
        self.name = name
        self.num_groups = num_groups
        self.images_per_group = images_per_group
        self.batch_fn = batch_fn
        self.group_fn = group_fn
        self.seed = seed
        self._available: Tensor | None = None
        self._indices: list[list[int]] | None = None
        self._cache: dict[tuple[Any, ...], list[ProbeBatch]] = {}

    def available(self) -> Tensor:
        """``[C]`` int64, how many images of each group there are, up to ``images_per_group``.

        Labels come from the dataset's ``targets`` where it has them; else the source is read until every group is
        full. The answer is kept.
        """
        if self._available is None:
            quota = torch.full((self.num_groups,), self.images_per_group)
            if isinstance(self.source, DataLoader) and has_indices(self.source):
                self._indices = self._find_indices(self.source, quota)
                self._available = torch.tensor([len(indices) for indices in self._indices])
            else:
                self._available = torch.zeros(self.num_groups, dtype=torch.int64)
                for batch in self._select_from_stream(quota, shard=0, shards=1):
                    self._available += torch.bincount(batch.groups, minlength=self.num_groups)
        return self._available

    def remember(self, indices: Tensor, groups: Tensor) -> None:
        """Take these dataset indices ``[N]`` and their groups ``[N]`` as the probe, instead of looking for them."""
        by_group: list[list[int]] = [[] for _ in range(self.num_groups)]
        for index, group in zip(indices.tolist(), groups.tolist(), strict=True):
            by_group[group].append(index)
        self._indices = by_group
        self._available = torch.tensor([len(found) for found in by_group])
        self._cache.clear()

    def batches(self, quota: Tensor, *, shard: int = 0, shards: int = 1) -> Iterator[ProbeBatch]:
        """The first ``quota[c]`` images of each group ``c``, every ``shards``-th of them.

        Small probes are kept in memory until :meth:`release`.

        Args:
            quota: ``[C]`` int64, at most what :meth:`available` says.
            shard: index of this process.
            shards: number of processes among which the images are dealt out.
        """
        key = (*quota.tolist(), shard, shards)
        if key in self._cache:
            yield from self._cache[key]
            return
        kept: list[ProbeBatch] | None = []
        size = 0
        for batch in self._read(quota, shard, shards):
            if kept is not None:
                size += _num_bytes(batch)
                kept = [*kept, batch] if size <= _CACHE_BYTES else None
            yield batch
        if kept is not None:
            self._cache[key] = kept

    def release(self) -> None:
        """Free the images that are kept in memory."""
        self._cache.clear()

    def _read(self, quota: Tensor, shard: int, shards: int) -> Iterator[ProbeBatch]:
        self.available()
        if self._indices is None:
            yield from self._select_from_stream(quota, shard=shard, shards=shards)
            return
        assert isinstance(self.source, DataLoader)
        wanted = [indices[:size] for indices, size in zip(self._indices, quota.tolist(), strict=True)]
        indices = sorted(itertools.chain.from_iterable(wanted))[shard::shards]
        for batch in own_loader(self.source, indices, seed=self.seed):
            yield self._grouped(batch)

    def _grouped(self, batch: Any) -> ProbeBatch:
        inputs, targets = split_batch(batch, self.batch_fn)
        groups = batch_groups(targets, count_images(inputs), self.num_groups, self.group_fn)
        return ProbeBatch(batch, groups.cpu())

    def _select_from_stream(self, quota: Tensor, *, shard: int, shards: int) -> Iterator[ProbeBatch]:
        seen = torch.zeros_like(quota)
        taken = 0
        for batch in self.source:
            whole = self._grouped(batch)
            rows = first_of_each(whole.groups, seen, quota).nonzero().flatten()
            start = (shard - taken) % shards
            taken += len(rows)
            if len(rows[start::shards]):
                yield whole.select(rows[start::shards])
            if bool((seen >= quota).all()):
                return

    def _find_indices(self, loader: DataLoader[Any], quota: Tensor) -> list[list[int]]:
        candidates = sampled_indices(loader)
        labels = stored_labels(loader.dataset) if self.batch_fn is None and self.group_fn is None else None
        if labels is not None:
            found = self._first_by_label(((index, labels[index]) for index in candidates), quota)
            if found is not None and self._labels_hold(loader, found):
                return found
        return self._first_by_label(self._read_labels(loader, candidates, quota), quota) or []

    def _read_labels(self, loader: DataLoader[Any], indices: Sequence[int], quota: Tensor) -> Iterator[tuple[int, int]]:
        remaining = quota.clone()
        unread = iter(indices)
        for batch in own_loader(loader, indices, seed=self.seed):
            groups = self._grouped(batch).groups
            yield from zip(itertools.islice(unread, len(groups)), groups.tolist(), strict=True)
            remaining -= torch.bincount(groups, minlength=self.num_groups)
            if bool((remaining <= 0).all()):
                return

    def _first_by_label(self, labelled: Iterable[tuple[int, int]], quota: Tensor) -> list[list[int]] | None:
        """None where a label is out of range: what a dataset stores need not be what it yields."""
        found: list[list[int]] = [[] for _ in range(self.num_groups)]
        open_groups = int((quota > 0).sum())
        for index, label in labelled:
            if not 0 <= label < self.num_groups:
                return None
            if len(found[label]) < int(quota[label]):
                found[label].append(index)
                open_groups -= len(found[label]) == int(quota[label])
                if not open_groups:
                    break
        return found

    def _labels_hold(self, loader: DataLoader[Any], found: list[list[int]]) -> bool:
        """Whether the dataset yields the labels that it stores, seen on the first image of each group."""
        firsts = {indices[0]: group for group, indices in enumerate(found) if indices}
        indices = sorted(firsts)[:16]
        yielded = [self._grouped(batch).groups for batch in own_loader(loader, indices, seed=self.seed)]
        return not yielded or torch.cat(yielded).tolist() == [firsts[index] for index in indices]


def _num_bytes(batch: ProbeBatch) -> int:
    sizes: list[int] = []
    apply_to_collection(batch.batch, Tensor, lambda values: sizes.append(values.numel() * values.element_size()))
    return sum(sizes)
