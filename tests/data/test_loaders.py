"""Which images a loader can yield, and in which order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numbered import LABELS, Backwards, Folder, Pairs, Plain, Stored, Stream, images, list_of_batches, loader
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from lightning_unitrole.data.loaders import (
    first_batch,
    has_indices,
    is_sequential,
    own_loader,
    sampled_indices,
    stored_labels,
)
from lightning_unitrole.network.isolation import seed_rng


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        pytest.param(lambda: SubsetRandomSampler([9, 3, 7, 0]), [0, 3, 7, 9], id="subset"),
        pytest.param(
            lambda: SubsetRandomSampler([9, 3, 7, 0], generator=torch.Generator()), [0, 3, 7, 9], id="subset, generator"
        ),
        pytest.param(lambda: WeightedRandomSampler([0, 1, 0.5, 0, 2] + [0] * 14, 50), [1, 2, 4], id="weighted"),
        pytest.param(lambda: RandomSampler(range(19), replacement=True, num_samples=3), [*range(19)], id="replacement"),
        pytest.param(lambda: RandomSampler(range(6)), [*range(6)], id="random, of a part"),
        pytest.param(lambda: SequentialSampler(range(6)), [*range(6)], id="sequential, of a part"),
        pytest.param(Backwards, [*range(10)], id="own"),
        pytest.param(lambda: [4, 2, 2, 5], [2, 4, 5], id="list"),
        pytest.param(lambda: DistributedSampler(Stored(), 3, 1), [*range(19)], id="distributed"),
        pytest.param(lambda: BatchSampler(SubsetRandomSampler([1, 6, 4]), 2, False), [*range(19)], id="batches"),
    ],
)
def test_indices_that_a_sampler_can_yield(sampler: Callable[[], Any], expected: list[int]) -> None:
    made = sampler()
    if isinstance(made, BatchSampler):
        own = DataLoader(Stored(), batch_sampler=made)
        expected = [1, 4, 6]
    else:
        own = loader(sampler=made)
    assert list(sampled_indices(own)) == expected


@pytest.mark.parametrize("batch", [list, tuple, np.array, torch.tensor], ids=["list", "tuple", "array", "tensor"])
def test_indices_of_a_batch_sampler(batch: Callable[[list[int]], Any]) -> None:
    class Own(Pairs):
        def __iter__(self) -> Iterator[Any]:
            return map(batch, super().__iter__())

    own = DataLoader(Stored(), batch_sampler=Own(last=6))
    assert list(sampled_indices(own)) == [0, 1, 2, 3, 4, 5]


def test_an_endless_batch_sampler_ends() -> None:
    class Endless(Pairs):
        def __iter__(self) -> Iterator[list[int]]:
            while True:
                yield from super().__iter__()

    assert list(sampled_indices(DataLoader(Stored(), batch_sampler=Endless()))) == [*range(10)]


def test_a_sampler_of_the_users_own_is_neither_advanced_nor_asked_to_copy_the_data() -> None:
    class Uncopied(Stored):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("the whole dataset was copied")

    sampler = Backwards(Uncopied())
    generator = torch.Generator().manual_seed(3)
    sampler.generator = generator  # type: ignore[attr-defined]
    order = [*sampler.order]
    before = torch.get_rng_state(), random.getstate()
    assert list(sampled_indices(loader(sampler.dataset, sampler=sampler))) == [*range(10)]
    assert (sampler.epoch, sampler.order) == (0, order)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_a_sampler_that_cannot_be_copied_is_read_all_the_same() -> None:
    class Uncopied(Backwards):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("no")

        def __iter__(self) -> Iterator[int]:
            self.generator.random()
            return super().__iter__()

    sampler = Uncopied()
    sampler.generator = random.Random(8)  # type: ignore[attr-defined]
    assert list(sampled_indices(loader(sampler=sampler))) == [*range(10)]
    assert sampler.epoch == 0
    assert sampler.generator.random() == random.Random(8).random()  # type: ignore[attr-defined]


def test_random_indices_do_not_depend_on_the_process() -> None:
    class Draws(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter([*torch.randint(0, 19, (5,)).tolist(), random.randrange(19), np.random.randint(19)])  # noqa: NPY002

    own = loader(sampler=Draws())
    found = sampled_indices(own)
    seed_rng(7)
    assert sampled_indices(own) == found


def test_processes_choose_from_the_whole_of_a_batch_sampler() -> None:
    """Lightning puts its distributed sampler into batch samplers of the user's own."""

    class Own(BatchSampler):
        pass

    for rank in range(2):
        distributed = DistributedSampler(Stored(), num_replicas=2, rank=rank, shuffle=False)
        own = DataLoader(Stored(), batch_sampler=Own(distributed, 3, False))
        assert list(sampled_indices(own)) == [*range(19)]
        assert own.batch_sampler.sampler is distributed  # type: ignore[union-attr]


def lightning_wrapped(sampler: Any) -> Any:
    from lightning_fabric.utilities.distributed import DistributedSamplerWrapper

    return DistributedSamplerWrapper(sampler, num_replicas=2, rank=0, shuffle=False)


class Reversed(SequentialSampler):
    def __iter__(self) -> Iterator[int]:
        return reversed(range(len(self.data_source)))


class Blocks(DistributedSampler[Any]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank * 9, self.rank * 9 + 9))


class OwnOrder(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter(reversed(list(super().__iter__())))


distributed = partial(DistributedSampler, Stored(), rank=0)


@pytest.mark.parametrize(
    ("source", "shards", "expected"),
    [
        pytest.param(loader, 1, True, id="plain"),
        pytest.param(partial(loader, drop_last=True), 1, True, id="drop_last"),
        pytest.param(partial(loader, shuffle=True), 1, False, id="shuffled"),
        pytest.param(lambda: loader(sampler=Reversed(Stored())), 1, False, id="a kind of sequential"),
        pytest.param(lambda: loader(sampler=SubsetRandomSampler([1, 2])), 1, False, id="subset"),
        pytest.param(lambda: DataLoader(Stored(), batch_sampler=Pairs()), 1, False, id="batch sampler"),
        pytest.param(lambda: OwnOrder(Stored()), 1, False, id="loader with an order of its own"),
        pytest.param(lambda: loader(Stream()), 1, False, id="stream"),
        pytest.param(list_of_batches, 1, False, id="list"),
        pytest.param(loader, 2, False, id="plain in two processes"),
        pytest.param(lambda: loader(sampler=distributed(num_replicas=2, shuffle=False)), 2, True, id="distributed"),
        pytest.param(lambda: loader(sampler=distributed(num_replicas=2)), 2, False, id="distributed, shuffled"),
        pytest.param(lambda: loader(sampler=distributed(num_replicas=3, shuffle=False)), 2, False, id="other number"),
        pytest.param(lambda: loader(sampler=Blocks(Stored(), 2, 0, shuffle=False)), 2, False, id="in blocks"),
        pytest.param(
            lambda: loader(sampler=lightning_wrapped(SequentialSampler(Stored()))), 2, True, id="wrapped sequential"
        ),
        pytest.param(
            lambda: loader(sampler=lightning_wrapped(SubsetRandomSampler([1, 2]))), 2, False, id="wrapped subset"
        ),
    ],
)
def test_is_sequential(source: Callable[[], Any], shards: int, expected: bool) -> None:
    assert is_sequential(source(), shards=shards) is expected


@pytest.mark.skipif(not hasattr(loader(), "in_order"), reason="this torch knows no other order")
def test_a_loader_that_hands_out_batches_as_they_come_is_not_sequential() -> None:
    assert not is_sequential(loader(num_workers=2, in_order=False))


def test_indices_behind_lightnings_wrapper() -> None:
    own = loader(sampler=lightning_wrapped(SubsetRandomSampler([1, 8, 2])))
    assert list(sampled_indices(own)) == [1, 2, 8]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param(loader, True, id="loader"),
        pytest.param(lambda: loader(Stream()), False, id="stream"),
        pytest.param(lambda: DataLoader(Stored(), batch_size=None), False, id="no batches"),
        pytest.param(list_of_batches, False, id="list"),
    ],
)
def test_has_indices(source: Callable[[], Any], expected: bool) -> None:
    assert has_indices(source()) is expected


class Opened(Stored):
    """Can be read only where a worker has opened it, as with files that processes cannot share."""

    handle: str | None = None

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        assert self.handle == "open"
        assert isinstance(get_worker_info().dataset, Opened)
        return super().__getitem__(index)


def open_in_worker(worker: int) -> None:
    get_worker_info().dataset.handle = "open"


def test_workers_see_the_users_own_dataset() -> None:
    own = own_loader(loader(Opened(), num_workers=2, worker_init_fn=open_in_worker), [3, 4, 8, 1, 0])
    assert torch.cat([inputs for inputs, _ in own])[:, 0, 0, 0].tolist() == [3, 4, 8, 1, 0]


def test_no_more_workers_than_batches() -> None:
    many = loader(num_workers=2)
    assert own_loader(many, range(9)).num_workers == 2
    assert own_loader(many, range(8)).num_workers == 2
    assert own_loader(many, range(4)).num_workers == 1
    assert own_loader(loader(), range(9)).num_workers == 0


def test_one_image_is_read_by_a_worker_too_where_the_loader_has_some() -> None:
    """A file that this process opened would be shared, with its position, by every worker that is forked later."""
    dataset = Opened()
    own = own_loader(loader(dataset, num_workers=1, worker_init_fn=open_in_worker), [3])
    assert torch.cat([inputs for inputs, _ in own])[:, 0, 0, 0].tolist() == [3]
    assert dataset.handle is None


def test_first_batch_is_small() -> None:
    dataset = Stored()
    inputs, targets = first_batch(loader(dataset, batch_size=16, shuffle=True), name="training")
    assert (len(inputs), len(targets)) == (2, 2)
    assert sorted(dataset.read) == [0, 1]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        pytest.param(Stored(), LABELS, id="targets"),
        pytest.param(Subset(Stored(), [3, 1, 0]), [1, 0, 2], id="subset"),
        pytest.param(TensorDataset(images(2), torch.tensor([1, 0])), [1, 0], id="tensors"),
        pytest.param(TensorDataset(images(2)), None, id="one tensor"),
        pytest.param(TensorDataset(images(2), torch.zeros(2, 3).long()), None, id="two numbers an image"),
        pytest.param(Folder(target_transform=abs), None, id="target_transform"),
        pytest.param(Subset(Folder(target_transform=abs), [0]), None, id="target_transform in a subset"),
        pytest.param(Plain(), None, id="none"),
    ],
)
def test_stored_labels(dataset: Any, expected: list[int] | None) -> None:
    assert stored_labels(dataset) == expected
