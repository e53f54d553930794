"""Reading the dataset behind a data loader without touching the loader's own iterators or any random state."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    default_collate,
    get_worker_info,
)

from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.network.isolation import OwnRandomness, find_generators, preserve_rng, seed_rng

DataSource = Dataset[Any] | Iterable[Any]

_DEFAULT_BATCH_SIZE = 64


def as_batches(source: DataSource, *, name: str) -> Iterable[Any]:
    """Something that yields batches each time it is iterated.

    Raises:
        SettingError: if ``source`` can be read only once, or not at all.
    """
    expected = "expected a DataLoader, a Dataset, or a list of batches."
    if isinstance(source, Iterator):
        raise SettingError(f"The {name} data are a {type(source).__name__}, which can be read only once; {expected}")
    if isinstance(source, Dataset):
        return DataLoader(source, batch_size=_DEFAULT_BATCH_SIZE)
    if not isinstance(source, Iterable) or isinstance(source, (Mapping, str)):
        raise SettingError(f"The {name} data are a {type(source).__name__}; {expected}")
    return source


def first_batch(batches: Iterable[Any], *, name: str, size: int = 2) -> Any:
    """A small first batch to learn the model's shape from.

    Raises:
        DataError: if there is none.
    """
    own: Iterable[Any] = own_batches(batches)
    if isinstance(batches, DataLoader) and has_indices(batches):
        own = own_loader(batches, sampled_indices(batches)[:size])
    for batch in own:
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
    """Whether ``shards`` processes see the dataset from beginning to end, image ``i`` in process ``i % shards``."""
    if not has_indices(loader) or type(loader.batch_sampler) is not BatchSampler:
        return False
    if type(loader).__iter__ is not DataLoader.__iter__ or not getattr(loader, "in_order", True):
        return False
    sampler = loader.batch_sampler.sampler
    if isinstance(sampler, DistributedSampler):
        inner = _undistributed(sampler)
        usual_order = inner is not None or type(sampler).__iter__ is DistributedSampler.__iter__
        in_sequence = inner is None or type(inner) is SequentialSampler
        return usual_order and in_sequence and not sampler.shuffle and sampler.num_replicas == shards
    return shards == 1 and type(sampler) is SequentialSampler


def _undistributed(sampler: DistributedSampler[Any]) -> Any:
    """The user's own sampler, which Lightning deals out to processes as if it were a dataset; None without one."""
    return getattr(sampler.dataset, "_sampler", None)


def sampled_indices(loader: DataLoader[Any]) -> Sequence[int]:
    """Dataset indices that a loader can yield, ascending, without drawing from any random state.

    For a sampler of the user's own these are the indices of one epoch. They do not depend on the process.
    """
    size = len(loader.dataset)  # type: ignore[arg-type]
    sampler: Any = loader.batch_sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler  # not the loader's, which is a stand-in where the batch sampler was handed in
    if isinstance(sampler, DistributedSampler):
        sampler = _undistributed(sampler)
    if sampler is None:
        return range(size)
    if type(sampler) in (SequentialSampler, RandomSampler):
        return range(min(size, len(sampler.data_source)))
    if type(sampler) is WeightedRandomSampler:
        return sampler.weights.nonzero().flatten().tolist()
    with preserve_rng(devices=False, generators=find_generators(sampler)):
        own = _own_sampler(sampler, loader.dataset)
        seed_rng(0)
        drawn = itertools.islice(iter(own), size)
        return sorted({int(index) for indices in drawn for index in np.ravel(indices)})


def _own_sampler(sampler: Any, dataset: Any) -> Any:
    """A copy of a sampler that looks at the same dataset, without dealing out to processes."""
    try:
        own = copy.deepcopy(sampler, {id(dataset): dataset})
    except Exception:  # something in it refuses to be copied, and may raise what it likes
        own = copy.copy(sampler)
    inner = getattr(own, "sampler", None)
    if isinstance(inner, DistributedSampler):
        own.sampler = _undistributed(inner) or SequentialSampler(dataset)
    return own


def own_loader(loader: DataLoader[Any], indices: Sequence[int], *, seed: int = 0) -> DataLoader[Any]:
    """A loader that reads ``indices`` in that order and collates as ``loader`` does, sharing no state with it."""
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or _DEFAULT_BATCH_SIZE
    batches = -(-len(indices) // batch_size)
    # Even one image is read by a worker where the user's loader has some: a dataset that opens a file at its first read
    # would otherwise share the open file, and its position, with every worker that is forked later.
    workers = min(loader.num_workers, max(batches, 1))
    collate = loader.collate_fn
    return DataLoader(
        _SeededSubset(loader.dataset, indices, seed),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate if collate is default_collate else _SeededCollate(collate, seed),
        worker_init_fn=_WorkerInit(loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        # With a generator of its own, iterating draws nothing from torch's global one.
        generator=torch.Generator().manual_seed(seed),
    )


def own_batches(source: Iterable[Any], *, seed: int = 0) -> Iterator[Any]:
    """What iterating ``source`` yields, the same each time it is random, leaving all random states as they were.

    Of a loader the live iterators are not touched, of an iterable dataset a shallow copy is read.
    """
    if isinstance(source, DataLoader):
        # With persistent workers a loader hands out the live iterator, rewound.
        own: dict[str, Any] = {"_iterator": None, "persistent_workers": False}
        if isinstance(source.dataset, IterableDataset):
            own["dataset"] = copy.copy(source.dataset)
        source = copy.copy(source)
        vars(source).update(own)  # past __setattr__, which refuses some of these
    randomness = OwnRandomness(seed, find_generators(source))
    with randomness.in_use():
        iterator = iter(source)
    while True:
        with randomness.in_use():
            try:
                batch = next(iterator)
            except StopIteration:
                return
        yield batch


class _SeededSubset(Dataset[Any]):
    """Some images of a dataset; reading one leaves the random states, global and the dataset's, as they were."""

    def __init__(self, dataset: Dataset[Any], indices: Sequence[int], seed: int) -> None:
        self.dataset, self.indices, self.seed = dataset, indices, seed
        self._generators: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        if self._generators is None:  # only now, because a worker may have prepared its copy of the dataset
            self._generators = find_generators(self.dataset)
        with preserve_rng(devices=False, generators=self._generators):
            seed_rng(self.seed * 1_000_003 + index, self._generators)
            return self.dataset[index]


class _SeededCollate:
    """A collate function that draws the same random numbers each time, and leaves the random states as they were."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any], seed: int) -> None:
        self.collate_fn, self.seed = collate_fn, seed

    def __call__(self, samples: list[Any]) -> Any:
        generators = find_generators(self.collate_fn)
        with preserve_rng(devices=False, generators=generators):
            seed_rng(self.seed, generators)
            return self.collate_fn(samples)


class _WorkerInit:
    """Shows the user's own dataset to whatever asks a worker for its dataset, then runs the user's function."""

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker: int) -> None:
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it refuses to be written to
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker)


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
