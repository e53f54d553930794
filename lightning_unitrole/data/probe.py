"""Class-balanced images out of whatever users train on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unitrole.data.batches import (
    BatchFn,
    GroupFn,
    batch_groups,
    count_images,
    ranks_in_group,
    split_batch,
    within,
)
from lightning_unitrole.data.loaders import (
    DataSource,
    as_batches,
    has_indices,
    labels_behind,
    own_batches,
    read_at_once,
    read_indices,
    sampled_indices,
)
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.structures import map_tensors, num_bytes, take_rows

KEPT_BYTES = 128 * 2**20
"""Size of a probe that is kept in memory without anybody asking for it."""
_LABELS_TO_CHECK = 32


@dataclass(frozen=True)
class ProbeBatch:
    """Some images of a probe.

    Attributes:
        batch: the batch as the source collates it.
        groups: ``[B]`` int64 on the CPU, the group of each image.
        ranks: ``[B]`` int64 on the CPU, its place among the images of its group, from 0.
    """

    batch: Any
    groups: Tensor
    ranks: Tensor

    def select(self, rows: Tensor) -> ProbeBatch:
        """The images at ``rows``."""
        return ProbeBatch(take_rows(self.batch, rows, len(self.groups)), self.groups[rows], self.ranks[rows])

    def copy(self) -> ProbeBatch:
        """The same with tensors of its own."""
        return ProbeBatch(map_tensors(self.batch, torch.clone), self.groups, self.ranks)


class Probe:
    """The first images of every group of a data source, in the source's own order, read again at will.

    Reading goes through iterators of the probe's own. Where the source is a map-style dataset only the wanted images
    are read, and a random augmentation draws the same numbers for an image whenever and wherever it is read, be it from
    the global random states or from a generator that the dataset or its transforms hold. All of them are left as they
    were, and so is other state of the data, such as counters; for the limits see
    :class:`~lightning_unitrole.network.snapshot.Snapshot`.

    A source without indices, such as an iterable dataset, is read from its beginning each time until every group is
    full, so an endless one must have images of every group. With several processes, each must see the same stream.

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

        Raises:
            DataError: if the batches do not fit: no labels, labels out of range, or not one for each image.
        """
        if self._available is None:
            quota = torch.full((self.num_groups,), self.images_per_group)
            if isinstance(self.source, DataLoader) and has_indices(self.source):
                self._indices = self._find_indices(self.source, quota)
                self._available = torch.tensor([len(indices) for indices in self._indices])
            else:
                self._available = torch.zeros(self.num_groups, dtype=torch.int64)
                for batch in self._select_from_stream(torch.zeros_like(quota), quota, shard=0, shards=1):
                    self._available += torch.bincount(batch.groups, minlength=self.num_groups)
        return self._available.clone()

    def remember(self, indices: Tensor, groups: Tensor) -> None:
        """Take these dataset indices ``[N]`` and their groups ``[N]`` as the probe, instead of looking for them."""
        by_group: list[list[int]] = [[] for _ in range(self.num_groups)]
        for index, group in zip(indices.tolist(), groups.tolist(), strict=True):
            by_group[group].append(index)
        self._indices = by_group
        self._available = torch.tensor([len(found) for found in by_group])
        self._cache.clear()

    def batches(
        self,
        quota: Tensor,
        *,
        start: Tensor | None = None,
        shard: int = 0,
        shards: int = 1,
        kept_bytes: int = KEPT_BYTES,
    ) -> Iterator[ProbeBatch]:
        """The images of each group with places from ``start`` to below ``quota``, every ``shards``-th of them.

        Small ones are kept in memory until :meth:`release`.

        Args:
            quota: ``[C]`` int64, at most what :meth:`available` says.
            start: ``[C]`` int64; zeros when left out.
            shard: index of this process.
            shards: number of processes among which the images are dealt out.
            kept_bytes: how large they may be to be kept.

        Raises:
            DataError: if the batches do not fit, or an image has another label than when it was chosen.
        """
        start = torch.zeros_like(quota) if start is None else start
        key = (*start.tolist(), *quota.tolist(), shard, shards)
        if key in self._cache:
            # Copies, because a model may work on its inputs in place.
            yield from (batch.copy() for batch in self._cache[key])
            return
        kept: list[ProbeBatch] | None = []
        size = 0
        for batch in self._read(start, quota, shard, shards):
            if kept is not None:
                size += num_bytes(batch.batch)
                kept = [*kept, batch.copy()] if size <= kept_bytes else None
            yield batch
        if kept is not None:
            self._cache[key] = kept

    def release(self) -> None:
        """Free the images that are kept in memory."""
        self._cache.clear()

    def _read(self, start: Tensor, quota: Tensor, shard: int, shards: int) -> Iterator[ProbeBatch]:
        self.available()
        if self._indices is None:
            yield from self._select_from_stream(start, quota, shard=shard, shards=shards)
            return
        assert isinstance(self.source, DataLoader)
        places = {
            index: (group, rank)
            for group, (indices, first, last) in enumerate(
                zip(self._indices, start.tolist(), quota.tolist(), strict=True)
            )
            for rank, index in enumerate(indices[:last])
            if rank >= first
        }
        for chunk, batch in self._read_indices(self.source, sorted(places)[shard::shards]):
            for index, group in zip(chunk, batch.groups.tolist(), strict=True):
                if group != places[index][0]:
                    raise DataError(
                        f"The {self.name} image with index {index} has label {group}; it was {places[index][0]} when "
                        "the image was chosen. Labels must be the same each time. If the dataset's 'targets' are not "
                        "the labels that it yields, pass group_fn=lambda targets: targets."
                    )
            yield ProbeBatch(batch.batch, batch.groups, torch.tensor([places[index][1] for index in chunk]))

    def _read_indices(self, loader: DataLoader[Any], indices: Sequence[int]) -> Iterator[tuple[list[int], ProbeBatch]]:
        size = read_at_once(loader)
        unread = iter(indices)
        for batch in read_indices(loader, indices, seed=self.seed):
            grouped = self._grouped(batch)
            chunk = list(itertools.islice(unread, size))
            if len(grouped.groups) != len(chunk):
                raise DataError(
                    f"The collate_fn of the {self.name} data made {len(grouped.groups)} images out of {len(chunk)}, so "
                    "which they are cannot be told. Pass a list of batches, or a DataLoader without that collate_fn."
                )
            yield chunk, grouped

    def _grouped(self, batch: Any) -> ProbeBatch:
        inputs, targets = split_batch(batch, self.batch_fn)
        groups = batch_groups(targets, count_images(inputs), self.num_groups, self.group_fn).cpu()
        return ProbeBatch(batch, groups, torch.full_like(groups, -1))

    def _select_from_stream(self, start: Tensor, quota: Tensor, *, shard: int, shards: int) -> Iterator[ProbeBatch]:
        seen = torch.zeros_like(quota)
        taken = 0
        for batch in own_batches(self.source, seed=self.seed):
            whole = self._grouped(batch)
            whole = replace(whole, ranks=ranks_in_group(whole.groups, seen))
            rows = within(whole.ranks, whole.groups, start, quota).nonzero().flatten()
            first = (shard - taken) % shards
            taken += len(rows)
            if len(rows[first::shards]):
                yield whole.select(rows[first::shards])
            if bool((seen >= quota).all()):
                return

    def _find_indices(self, loader: DataLoader[Any], quota: Tensor) -> list[list[int]]:
        candidates = sampled_indices(loader)
        labels = labels_behind(loader) if self.batch_fn is None and self.group_fn is None else None
        if labels is not None:
            found = self._first_by_label(((index, labels[index]) for index in candidates), quota)
            if found is not None and self._labels_hold(loader, found):
                return found
        return self._first_by_label(self._read_labels(loader, candidates), quota) or []

    def _read_labels(self, loader: DataLoader[Any], indices: Sequence[int]) -> Iterator[tuple[int, int]]:
        for chunk, batch in self._read_indices(loader, indices):
            yield from zip(chunk, batch.groups.tolist(), strict=True)

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
        """Whether the dataset yields the labels that it stores, seen on the first and the last image of each group."""
        stored = {index: group for group, indices in enumerate(found) for index in (*indices[:1], *indices[-1:])}
        read = self._read_indices(loader, sorted(stored)[:_LABELS_TO_CHECK])
        return all([stored[index] for index in chunk] == batch.groups.tolist() for chunk, batch in read)
