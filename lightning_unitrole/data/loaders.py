"""Reading the dataset behind a data loader without touching the loader's own iterators or any random state."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.isolation import preserve_rng

DataSource = Dataset[Any] | Iterable[Any]

_DEFAULT_BATCH_SIZE = 64


def as_batches(source: DataSource, *, name: str) -> Iterable[Any]:
    """Something that yields batches each time it is iterated.

    Raises:
        SettingError: if ``source`` can be read only once.
    """
    if isinstance(source, Iterator):
        raise SettingError(
            f"The {name} data are a {type(source).__name__}, which can be read only once; expected a DataLoader, a "
            "Dataset, or a list of batches."
        )
    if isinstance(source, Dataset):
        return DataLoader(source, batch_size=_DEFAULT_BATCH_SIZE)
    return source


def first_batch(batches: Iterable[Any], *, name: str, size: int = 2) -> Any:
    """A small first batch to learn the model's shape from.

    Raises:
        DataError: if there is none.
    """
    if isinstance(batches, DataLoader) and has_indices(batches):
        batches = own_loader(batches, sampled_indices(batches)[:size])
    for batch in batches:
        return batch
    raise DataError(f"The {name} data are empty: there is no image to look at.")


def has_indices(loader: Any) -> bool:
    """Whether the images of a loader can be read one by one, by index."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and hasattr(loader.dataset, "__len__")
        and loader.batch_sampler is not None
    )


def is_sequential(loader: Any, *, shards: int = 1) -> bool:
    """Whether ``shards`` processes together see the dataset from beginning to end, image ``i`` in process ``i % shards``."""
    if not has_indices(loader) or type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler = loader.batch_sampler.sampler
    if isinstance(sampler, DistributedSampler):
        return not sampler.shuffle and sampler.num_replicas == shards and _wrapped(sampler) in (None, SequentialSampler)
    return shards == 1 and isinstance(sampler, SequentialSampler)


def _wrapped(sampler: DistributedSampler[Any]) -> type | None:
    """Kind of the user's own sampler, which Lightning deals out to processes as if it were a dataset."""
    inner = getattr(sampler.dataset, "_sampler", None)
    return None if inner is None else type(inner)


def sampled_indices(loader: DataLoader[Any]) -> Sequence[int]:
    """Dataset indices that a loader can yield, ascending, without drawing from any random state."""
    everything = range(len(loader.dataset))  # type: ignore[arg-type]
    sampler: Any = loader.batch_sampler if type(loader.batch_sampler) is not BatchSampler else loader.sampler
    if isinstance(sampler, DistributedSampler):
        sampler = getattr(sampler.dataset, "_sampler", None)
    if sampler is None or isinstance(sampler, (SequentialSampler, RandomSampler)):
        return everything
    if isinstance(sampler, WeightedRandomSampler):
        return sampler.weights.nonzero().flatten().tolist()
    with preserve_rng():
        drawn = itertools.islice(iter(copy.deepcopy(sampler)), len(everything))
        flat = (indices if isinstance(indices, (list, tuple)) else [indices] for indices in drawn)
        return sorted({int(index) for index in itertools.chain.from_iterable(flat)})


def own_loader(loader: DataLoader[Any], indices: Sequence[int], *, seed: int = 0) -> DataLoader[Any]:
    """A loader that reads ``indices`` in that order and collates as ``loader`` does, sharing no state with it."""
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or _DEFAULT_BATCH_SIZE
    return DataLoader(
        _SeededSubset(loader.dataset, indices, seed),
        batch_size=batch_size,
        num_workers=loader.num_workers if len(indices) > batch_size else 0,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if len(indices) > batch_size else None,
        # With a generator of its own, iterating draws nothing from torch's global one.
        generator=torch.Generator().manual_seed(seed),
    )


class _SeededSubset(Dataset[Any]):
    """Some images of a dataset; reading one leaves the global random states as they were."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int], seed: int) -> None:
        self.dataset, self.indices, self.seed = dataset, indices, seed

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        with preserve_rng(devices=False):
            seed = (self.seed * 1_000_003 + index) % 2**32
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - it is the state that transforms draw from
            random.seed(seed)
            return self.dataset[index]


def stored_labels(dataset: Any) -> Sequence[int] | None:
    """Labels that a dataset holds in memory, by index, or None where it holds none."""
    if isinstance(dataset, Subset):
        inner = stored_labels(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        labels: Any = dataset.tensors[1] if len(dataset.tensors) > 1 else None
    else:
        labels = getattr(dataset, "targets", None)
    if labels is None or getattr(dataset, "target_transform", None) is not None or isinstance(labels, Mapping):
        return None
    try:
        values = np.asarray(labels)
    except (TypeError, ValueError):
        return None
    if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) != len(dataset):
        return None
    return [int(value) for value in values]
