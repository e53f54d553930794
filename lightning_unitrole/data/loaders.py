"""Reading the dataset behind a data loader without touching the loader's own iterators, its state or any random state.

A dataset whose loader has workers is read in workers only, never in this process: it may open a file at its first read,
which workers that are forked later would share. What runs in this process, samplers and what a loader without workers
reads, runs in :func:`reading`.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import multiprocessing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
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
from lightning_unitrole.network.isolation import OwnRandomness, find_generators, preserve_rng, seed_rng, untouched
from lightning_unitrole.network.snapshot import find_obstacles, find_open_files

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


def reading(source: Any) -> AbstractContextManager[None]:
    """Read from a source inside this context, and find it as before after it."""
    return untouched(source, without=_read_elsewhere(source))


def check_readable(source: Any, *, name: str) -> None:
    """Refuse a source that cannot be read without disturbing whoever else reads it.

    Args:
        source: the data.
        name: what to call them in messages.

    Raises:
        SettingError: if it holds an iterator that cannot be rewound, or an open file that its workers share.
    """
    advice = "" if name == "validation" else ", or pass train_data=, other data for the analysis"
    if obstacles := find_obstacles(source, without=_read_elsewhere(source)):
        raise SettingError(
            f"The {name} data hold {obstacles[0]}, which cannot be rewound: reading it for the analysis would take its "
            f"items away from training. Make it anew in __iter__{advice}."
        )
    forks = isinstance(source, DataLoader) and source.num_workers and _start_method(source) == "fork"
    if files := find_open_files(source.dataset, source.collate_fn) if forks else []:
        raise SettingError(
            f"The {name} data hold the open file {files[0]!r}, whose position all workers share: reading it beside "
            f"them would give wrong images. Open it at the first read, in each worker{advice}."
        )


def _read_elsewhere(source: Any) -> list[Any]:
    """What only the workers of a loader run."""
    if isinstance(source, DataLoader) and source.num_workers:
        return [source.dataset, source.collate_fn, source.worker_init_fn]
    return []


def _start_method(loader: DataLoader[Any]) -> str:
    context: Any = loader.multiprocessing_context or multiprocessing
    # Asking without `allow_none` would settle it for the whole process.
    return context.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def first_batch(batches: Iterable[Any], *, name: str, size: int = 2) -> Any:
    """A small first batch to learn the model's shape from.

    Raises:
        SettingError: if the data cannot be read without disturbing training.
        DataError: if there is none.
    """
    check_readable(batches, name=name)
    if isinstance(batches, DataLoader) and has_indices(batches):
        own = read_indices(batches, sampled_indices(batches)[:size])
    else:
        own = own_batches(batches)
    with closing(own):
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
    with untouched(sampler, without=[loader.dataset]), preserve_rng(devices=False):
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
    batch_size = read_at_once(loader)
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


def read_at_once(loader: DataLoader[Any]) -> int:
    """How many images :func:`own_loader` puts into a batch."""
    size: int | None = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return size or _DEFAULT_BATCH_SIZE


def read_indices(loader: DataLoader[Any], indices: Sequence[int], *, seed: int = 0) -> Generator[Any, None, None]:
    """What :func:`own_loader` yields, leaving what is read in this process as it was."""
    with untouched() if loader.num_workers else untouched(loader.dataset, loader.collate_fn):
        yield from own_loader(loader, indices, seed=seed)


def own_batches(source: Iterable[Any], *, seed: int = 0) -> Generator[Any, None, None]:
    """What iterating ``source`` yields, the same each time it is random, leaving everything as it was.

    Of a loader the live iterators are not touched, of an iterable dataset a shallow copy is read.
    """
    with reading(source):
        yield from _own_batches(source, seed)


def _own_batches(source: Iterable[Any], seed: int) -> Iterator[Any]:
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
        self._generators: list[Any] | None = None

    def __call__(self, samples: list[Any]) -> Any:
        if self._generators is None:
            self._generators = find_generators(self.collate_fn)
        with preserve_rng(devices=False, generators=self._generators):
            seed_rng(self.seed, self._generators)
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


class _Labels(Dataset[Any]):
    """The stored labels of a dataset as its only item."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return stored_labels(self.dataset)


def _as_it_is(item: Any) -> Any:
    return item


def labels_behind(loader: DataLoader[Any]) -> Sequence[int] | None:
    """Labels that the dataset of a loader holds in memory, by index, or None where it holds none.

    Where they are a property, which may read a file, it is run in a worker if the loader has some.
    """
    if not _are_computed(loader.dataset):
        return stored_labels(loader.dataset)
    if not loader.num_workers:
        with untouched(loader.dataset), preserve_rng(devices=False):
            return stored_labels(loader.dataset)
    worker: Iterable[Any] = DataLoader(
        _Labels(loader.dataset),
        batch_size=None,
        num_workers=1,
        collate_fn=_as_it_is,
        worker_init_fn=_WorkerInit(loader.worker_init_fn),
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
    )
    return next(iter(worker), None)


def class_names_behind(source: DataSource) -> list[str] | None:
    """What a dataset calls its classes, as torchvision's do in ``classes``; None where it does not say, at once."""
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    found = inspect.getattr_static(dataset, "classes", None)  # runs no code of the dataset
    named = isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found)
    return list(found) if named else None


def _are_computed(dataset: Any) -> bool:
    """Whether looking at the labels of a dataset runs code."""
    if isinstance(dataset, Subset):
        return _are_computed(dataset.dataset)
    found = inspect.getattr_static(dataset, "targets", None)
    return hasattr(type(found), "__get__") or (found is None and hasattr(type(dataset), "__getattr__"))


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
