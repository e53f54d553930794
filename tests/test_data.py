"""Images by class: the right ones, the same ones each time, and no trace of having read them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from lightning_unitrole.data.batches import batch_groups, count_images, first_of_each, single_group, split_batch
from lightning_unitrole.data.loaders import (
    as_batches,
    first_batch,
    has_indices,
    is_sequential,
    own_loader,
    sampled_indices,
    stored_labels,
)
from lightning_unitrole.data.probe import Probe, ProbeBatch
from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.network.isolation import find_generators, preserve_rng, seed_rng

LABELS = [2, 0, 0, 1, 0, 2, 1, 0, 0, 1, 2, 0, 1, 2, 2, 0, 1, 0, 2]
"""19 labels of 3 classes: 8, 5 and 6 of them."""

BY_CLASS = [[index for index, label in enumerate(LABELS) if label == klass] for klass in range(3)]
FIRST_3 = sorted(index for found in BY_CLASS for index in found[:3])


def images(size: int = len(LABELS)) -> Tensor:
    """Image ``i`` is filled with ``i``."""
    return torch.arange(size, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 3).contiguous()


class Plain(Dataset[Any]):
    """Yields numbered images; counts how often it is read."""

    def __init__(self, labels: Sequence[Any] = LABELS) -> None:
        self.labels = labels
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        self.read.append(index)
        return images(index + 1)[index], self.labels[index]


class Stored(Plain):
    """Like torchvision's: labels are in ``targets`` too."""

    def __init__(self, labels: Sequence[Any] = LABELS, targets: Any = LABELS) -> None:
        super().__init__(labels)
        self.targets = targets


class Folder(Stored):
    """Like torchvision's ImageFolder: ``samples`` and ``targets`` from a tree, and a transform for each side."""

    def __init__(self, target_transform: Callable[[int], int] | None = None) -> None:
        super().__init__()
        self.samples = [(f"{label}/{index}.jpeg", label) for index, label in enumerate(LABELS)]
        self.classes = ["a", "b", "c"]
        self.target_transform = target_transform

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = super().__getitem__(index)
        return image, target if self.target_transform is None else self.target_transform(target)


class Stream(IterableDataset[Any]):
    """Yields numbered images from its beginning."""

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        yield from zip(images(), LABELS, strict=True)


class NoisyStream(IterableDataset[Any]):
    """Its own iterator, which draws from every random state."""

    def __iter__(self) -> NoisyStream:
        self.position = -1
        return self

    def __next__(self) -> tuple[Tensor, int]:
        self.position += 1
        if self.position == len(LABELS):
            raise StopIteration
        return torch.rand(2) + float(np.random.rand()) + random.random(), LABELS[self.position]  # noqa: NPY002


class Noisy(Stored):
    """Adds noise from every global random state, as an augmentation does."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = super().__getitem__(index)
        return image + torch.rand(()) + np.random.rand() + random.random(), target  # noqa: NPY002


def numbers(batches: Iterator[ProbeBatch]) -> list[int]:
    """Numbers of the images of batches, in their order; checks that groups belong to them."""
    found: list[int] = []
    for batch in batches:
        inputs, _ = split_batch(batch.batch)
        own = inputs[:, 0, 0, 0].int().tolist()
        assert batch.groups.tolist() == [LABELS[number] for number in own]
        found += own
    return found


def probe(source: Any, wanted: int = 3, **settings: Any) -> Probe:
    return Probe(source, name="training", num_groups=3, images_per_group=wanted, **settings)


def read(source: Any, wanted: int = 3, **settings: Any) -> list[int]:
    found = probe(source, wanted, **settings)
    return numbers(found.batches(found.available()))


def loader(dataset: Any = None, batch_size: int = 4, **settings: Any) -> DataLoader[Any]:
    return DataLoader(Stored() if dataset is None else dataset, batch_size=batch_size, **settings)


def as_dict(samples: list[Any]) -> dict[str, Any]:
    inputs, targets = default_collate(samples)
    return {"image": inputs, "label": targets}


def list_of_batches() -> list[list[Tensor]]:
    return list(DataLoader(TensorDataset(images(), torch.tensor(LABELS)), batch_size=4))


class Backwards(Sampler[int]):
    """A sampler of a user's own, with no image from 10 on, drawing from every random state."""

    def __init__(self, dataset: Any = None) -> None:
        self.dataset, self.epoch, self.order = dataset, 0, list(range(10))

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        random.shuffle(self.order)
        torch.rand(1), np.random.rand()  # noqa: NPY002
        return iter(reversed(self.order))

    def __len__(self) -> int:
        return 10


class Pairs(Sampler[list[int]]):
    """A batch sampler of a user's own."""

    def __init__(self, last: int = 10) -> None:
        self.last = last

    def __iter__(self) -> Iterator[list[int]]:
        yield from ([index, index + 1] for index in range(0, self.last, 2))


SOURCES = {
    "TensorDataset": lambda: TensorDataset(images(), torch.tensor(LABELS)),
    "dataset without targets": Plain,
    "dataset with targets": Stored,
    "targets in a tensor": lambda: Stored(targets=torch.tensor(LABELS)),
    "lying targets, in order": lambda: Stored(targets=[(label + 1) % 3 for label in LABELS]),
    "lying targets, too many classes": lambda: Stored(targets=[label * 2 for label in LABELS]),
    "targets of another length": lambda: Stored(targets=LABELS[:-1]),
    "targets that are no labels": lambda: Stored(targets=[str(label) for label in LABELS]),
    "targets by name": lambda: Stored(targets={"main": LABELS}),
    "ragged targets": lambda: Stored(targets=[[label] * label for label in LABELS]),
    "two targets an image": lambda: Stored(targets=[[label, 0] for label in LABELS]),
    "folder": Folder,
    "folder whose labels are changed": lambda: _relabelled_folder(),
    "Subset of all": lambda: Subset(Stored(), range(len(LABELS))),
    "Subset by tensor": lambda: Subset(Stored(), torch.arange(len(LABELS))),  # type: ignore[arg-type]
    "Subset of a Subset": lambda: Subset(Subset(Stored(), [*range(19)]), [*range(19)]),
    "ConcatDataset": lambda: ConcatDataset([Subset(Stored(), range(7)), Subset(Stored(), range(7, 19))]),
    "IterableDataset": Stream,
    "list of batches": list_of_batches,
    "tuple of batches": lambda: tuple(list_of_batches()),
    "loader": loader,
    "loader, shuffled": lambda: loader(shuffle=True),
    "loader, drop_last": lambda: loader(shuffle=True, drop_last=True),
    "loader, batches larger than the data": lambda: loader(batch_size=50),
    "loader, batches of one": lambda: loader(batch_size=1),
    "loader, dicts": lambda: loader(collate_fn=as_dict),
    "loader, without targets, shuffled": lambda: loader(Plain(), shuffle=True),
    "loader, stream": lambda: loader(Stream()),
    "loader, list as dataset": lambda: loader([*zip(images(), LABELS, strict=True)]),
    "loader, numpy labels": lambda: loader(Plain(np.array(LABELS))),
    "loader, small labels": lambda: loader(Plain(torch.tensor(LABELS, dtype=torch.uint8))),
    "loader, distributed": lambda: loader(sampler=DistributedSampler(Stored(), num_replicas=2, rank=1, shuffle=True)),
    "loader, without batches of its own": lambda: DataLoader(
        TensorDataset(images(), torch.tensor(LABELS)),
        sampler=BatchSampler(SequentialSampler(LABELS), 4, drop_last=False),
        batch_size=None,
    ),
}


def _relabelled_folder() -> Folder:
    folder = Folder(target_transform=LABELS.__getitem__)
    folder.labels = range(len(LABELS))
    folder.targets = [0] * len(LABELS)
    return folder


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_reads_the_first_of_every_class(source: Callable[[], Any]) -> None:
    assert read(source()) == FIRST_3


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_shards_together_read_what_one_does(source: Callable[[], Any]) -> None:
    quota = torch.tensor([3, 1, 2])
    whole = numbers(probe(source()).batches(quota))
    assert sorted(whole) == sorted([*BY_CLASS[0][:3], *BY_CLASS[1][:1], *BY_CLASS[2][:2]])
    for shards in (2, 3, 8):
        parts = [numbers(probe(source()).batches(quota, shard=shard, shards=shards)) for shard in range(shards)]
        assert sorted(chain.from_iterable(parts)) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_leaves_the_global_random_states(source: Callable[[], Any]) -> None:
    data = source()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert read(data) == FIRST_3
    first_batch(as_batches(data, name="training"), name="training")
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("wanted", [1, 5, 6, 100])
def test_available_is_capped_by_what_is_wanted_and_by_what_there_is(wanted: int) -> None:
    for source in (Stored(), Plain(), Stream(), list_of_batches()):
        assert probe(source, wanted).available().tolist() == [min(wanted, size) for size in (8, 5, 6)]


def test_available_belongs_to_the_caller() -> None:
    found = probe(Stored())
    found.available().zero_()
    assert found.available().tolist() == [3, 3, 3]


@pytest.mark.parametrize("source", [Stored, Plain, Stream], ids=["stored", "read", "stream"])
def test_a_class_without_images_has_none(source: Callable[[], Any]) -> None:
    found = Probe(source(), name="training", num_groups=5, images_per_group=3)
    assert found.available().tolist() == [3, 3, 3, 0, 0]
    assert numbers(found.batches(found.available())) == FIRST_3


@pytest.mark.parametrize(
    "source", [[], TensorDataset(torch.zeros(0, 1, 2, 2), torch.zeros(0).long())], ids=["list", "set"]
)
def test_no_images_at_all(source: Any) -> None:
    found = probe(source)
    assert found.available().tolist() == [0, 0, 0]
    assert list(found.batches(found.available())) == []
    with pytest.raises(DataError, match="The training data are empty: there is no image to look at"):
        first_batch(found.source, name="training")


def test_with_stored_labels_only_the_wanted_images_are_read() -> None:
    dataset = Stored()
    found = probe(dataset, 2)
    found.available()
    # The first and the last of each class, to see whether the stored labels hold.
    assert sorted(dataset.read) == sorted(index for group in BY_CLASS for index in group[:2])
    dataset.read.clear()
    list(found.batches(torch.tensor([1, 2, 0])))
    assert sorted(dataset.read) == sorted([BY_CLASS[0][0], *BY_CLASS[1][:2]])


def test_without_stored_labels_reading_stops_when_every_class_is_full() -> None:
    dataset = Plain()
    probe(loader(dataset), 1).available()
    assert dataset.read == [0, 1, 2, 3]


def test_labels_that_lie_beyond_what_was_looked_at_are_found_when_read() -> None:
    targets = [*LABELS]
    targets[BY_CLASS[1][1]] = 0
    found = probe(Stored(targets=targets), 5)
    with pytest.raises(
        DataError, match=r"The training image with index 6 has label 1; it was 0 when the image was chosen"
    ):
        list(found.batches(found.available()))
    remedy = probe(Stored(targets=targets), 5, group_fn=lambda targets: targets)
    assert remedy.available().tolist() == [5, 5, 5]
    assert len(numbers(remedy.batches(remedy.available()))) == 15


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


def noise(source: Any, wanted: int = 4, seed: int = 0, **shard: int) -> dict[int, float]:
    """What noise the images of a source were read with, by number."""
    own = probe(source, wanted, seed=seed)
    found: dict[int, float] = {}
    for batch in own.batches(own.available(), **shard):
        for value in batch.batch[0][:, 0, 0, 0].tolist():
            found[int(value // 3)] = value
    return found


class Spread(Noisy):
    """Image ``i`` is between ``3 i`` and ``3 i + 3``."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = super().__getitem__(index)
        return image + 2 * index, target


def test_an_augmentation_draws_the_same_for_an_image_wherever_it_is_read() -> None:
    expected = noise(loader(Spread(), batch_size=4))
    assert len(expected) == 12
    assert len({round(value - 3 * number, 5) for number, value in expected.items()}) == 12
    seed_rng(99)
    assert noise(loader(Spread(), batch_size=5, shuffle=True)) == expected
    assert noise(loader(Spread(), batch_size=3, num_workers=2)) == expected
    assert noise(Spread()) == expected
    assert noise(loader(Spread()), shard=0, shards=2) | noise(loader(Spread()), shard=1, shards=2) == expected
    few = noise(loader(Spread()), wanted=1)
    assert few == {number: expected[number] for number in few}
    assert noise(loader(Spread()), seed=1) != expected


class Held:
    """A transform with a generator of its own."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __call__(self, image: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            return image + torch.rand((), generator=self.generator)
        return image + self.generator.random()


class Composed:
    def __init__(self, *transforms: Callable[[Tensor], Tensor]) -> None:
        self.transforms = [*transforms]

    def __call__(self, image: Tensor) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image


class Transformed(Stored):
    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = super().__getitem__(index)
        return self.transform(image), target


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(5),
    "NumPy": lambda: np.random.default_rng(5),
    "NumPy, Philox": lambda: np.random.Generator(np.random.Philox(5)),
    "NumPy, legacy": lambda: np.random.RandomState(5),
    "Python": lambda: random.Random(5),
}

PLACES = {
    "transform": lambda generator: Transformed(Held(generator)),
    "composed": lambda generator: Transformed(Composed(Held(generator), torch.relu)),
    "subset": lambda generator: Subset(Transformed(Composed(Held(generator))), range(19)),
    "concatenated": lambda generator: ConcatDataset([Transformed(Held(generator)), Transformed(Held(generator))]),
    "partial": lambda generator: Transformed(partial(_add, generator=Held(generator))),
    "method": lambda generator: Transformed(Held(generator).__call__),
    "closure": lambda generator: Transformed(lambda image: Held(generator)(image)),
}


def _add(image: Tensor, *, generator: Held) -> Tensor:
    return generator(image)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS)
def test_generators_that_a_dataset_holds_are_left_as_they_were(
    generator: Callable[[], Any], place: Callable[[Any], Dataset[Any]]
) -> None:
    dataset, untouched = place(generator()), place(generator())
    live, expected = (iter(DataLoader(data, batch_size=2)) for data in (dataset, untouched))
    for _ in range(2):
        torch.testing.assert_close(next(live)[0], next(expected)[0], rtol=0, atol=0)
        own = probe(DataLoader(dataset, batch_size=5, shuffle=True))
        first = [batch.batch[0] for batch in own.batches(own.available())]
        own.release()
        again = [batch.batch[0] for batch in own.batches(own.available())]
        torch.testing.assert_close(first, again, rtol=0, atol=0)
    for one, other in zip(live, expected, strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=0, atol=0)


def test_generators_are_found_once_and_the_operating_systems_is_none() -> None:
    shared = random.Random(1)
    holder = Held(shared)
    holder.again = {"deep": [shared, random.SystemRandom(), holder]}  # type: ignore[attr-defined]
    assert find_generators(holder) == [shared]
    assert find_generators(random, torch.zeros(3), "text", 4, None) == []


def noisy_collate(samples: list[Any]) -> Any:
    inputs, targets = default_collate(samples)
    return inputs + torch.rand(()) + np.random.rand() + random.random(), targets  # noqa: NPY002


def test_a_random_collate_function_leaves_no_trace_and_repeats_itself() -> None:
    own = probe(loader(collate_fn=noisy_collate))
    before = torch.get_rng_state(), random.getstate()
    first = [batch.batch[0] for batch in own.batches(own.available())]
    own.release()
    torch.testing.assert_close(first, [batch.batch[0] for batch in own.batches(own.available())], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(partial(loader, Spread(), shuffle=True), id="shuffled"),
        pytest.param(partial(loader, Stream()), id="stream"),
        pytest.param(partial(loader, NoisyStream()), id="stream that is its own iterator"),
        pytest.param(
            partial(DataLoader, Spread(), batch_size=None, sampler=RandomSampler(LABELS, generator=torch.Generator())),
            id="without batches",
        ),
    ],
)
def test_a_live_iterator_goes_on_as_if_nothing_had_been_read(
    make: Callable[..., DataLoader[Any]], workers: int
) -> None:
    epochs = []
    for disturb in (False, True):
        own = make(num_workers=workers, persistent_workers=workers > 0)
        seed_rng(3)
        if isinstance(own.sampler, RandomSampler) and own.sampler.generator is not None:
            own.sampler.generator.manual_seed(3)
        seen: list[Tensor] = []
        for _ in range(2):
            for number, (inputs, _) in enumerate(own):
                seen.append(inputs)
                if disturb and number == 1:
                    _read_all(own)
        epochs.append(seen)
    assert len(epochs[0]) == len(epochs[1])
    torch.testing.assert_close(*epochs, rtol=0, atol=0)


def _read_all(own: DataLoader[Any]) -> None:
    """Everything that an analysis reads of a loader, for one image a batch too."""
    first_batch(own, name="training")
    reading = probe(own, batch_fn=None if own.batch_size else _single)
    for _ in reading.batches(reading.available()):
        pass


def _single(batch: Any) -> tuple[Tensor, Tensor]:
    return batch[0].unsqueeze(0), torch.as_tensor(batch[1]).view(1)


def test_a_stream_is_the_same_each_time() -> None:
    own = probe(loader(NoisyStream()))
    first = [batch.batch[0] for batch in own.batches(own.available())]
    noise = torch.cat(first).flatten().tolist()
    assert len(set(noise)) == len(noise) == 18
    own.release()
    seed_rng(99)
    torch.testing.assert_close(first, [batch.batch[0] for batch in own.batches(own.available())], rtol=0, atol=0)


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
    assert own_loader(many, range(4)).num_workers == 0
    assert own_loader(many, []).num_workers == 0


def test_remembered_images_are_read_without_looking() -> None:
    dataset = Plain()
    own = probe(dataset)
    list(own.batches(torch.tensor([1, 1, 1])))
    dataset.read.clear()
    own.remember(torch.tensor([17, 4, 5, 16]), torch.tensor([0, 0, 2, 1]))
    assert own.available().tolist() == [2, 1, 1]
    assert dataset.read == []
    assert numbers(own.batches(torch.tensor([1, 1, 1]))) == [5, 16, 17]


def test_small_probes_are_read_once_until_they_are_released() -> None:
    dataset = Stored()
    own = probe(loader(dataset))
    quota = own.available()
    dataset.read.clear()
    for _ in range(3):
        assert numbers(own.batches(quota)) == FIRST_3
    assert len(dataset.read) == 9
    own.release()
    assert numbers(own.batches(quota)) == FIRST_3
    assert len(dataset.read) == 18


def test_a_reading_that_was_broken_off_is_not_kept() -> None:
    own = probe(loader())
    next(own.batches(own.available()))
    assert numbers(own.batches(own.available())) == FIRST_3


def test_large_probes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_unitrole.data.probe._CACHE_BYTES", 100)
    dataset = Stored()
    own = probe(loader(dataset))
    quota = own.available()
    dataset.read.clear()
    for _ in range(2):
        assert numbers(own.batches(quota)) == FIRST_3
    assert len(dataset.read) == 18


def test_working_on_a_batch_in_place_does_not_change_the_next_reading() -> None:
    own = probe(loader())
    for _ in range(3):
        for batch in own.batches(own.available()):
            assert batch.batch[0].max() >= 1
            batch.batch[0].zero_()
    assert numbers(own.batches(own.available())) == FIRST_3


def test_batch_fn_and_group_fn() -> None:
    def parity(targets: dict[str, Tensor]) -> Tensor:
        return targets["number"] % 2

    batches = [{"pixels": inputs, "meta": {"number": inputs[:, 0, 0, 0].int()}} for inputs, _ in list_of_batches()]
    own = Probe(
        batches,
        name="training",
        num_groups=2,
        images_per_group=4,
        batch_fn=lambda batch: (batch["pixels"], batch["meta"]),
        group_fn=parity,
    )
    assert own.available().tolist() == [4, 4]
    found = [batch.batch["pixels"][:, 0, 0, 0].tolist() for batch in own.batches(torch.tensor([1, 3]))]
    assert [*chain.from_iterable(found)] == [0, 1, 3, 5]


def test_stored_labels_are_not_taken_for_groups() -> None:
    def first_or_other(targets: Tensor) -> Tensor:
        return (targets > 0).long()

    own = Probe(Stored(), name="training", num_groups=2, images_per_group=4, group_fn=first_or_other)
    groups = torch.cat([batch.groups for batch in own.batches(own.available())])
    assert groups.bincount().tolist() == [4, 4]


@pytest.mark.parametrize("source", [loader, list_of_batches], ids=["indices", "stream"])
def test_a_single_group_takes_the_first_images(source: Callable[[], Any]) -> None:
    own = Probe(source(), name="training", num_groups=1, images_per_group=5, group_fn=single_group)
    found = [batch.batch[0][:, 0, 0, 0].tolist() for batch in own.batches(own.available())]
    assert [*chain.from_iterable(found)] == [0, 1, 2, 3, 4]
    assert single_group({"a": torch.zeros(3, 2)}).tolist() == [0, 0, 0]


class Fields(NamedTuple):
    inputs: Any
    targets: Any
    names: Any = None


def test_images_of_a_batch_are_selected_in_everything_that_has_one_entry_for_each() -> None:
    batch = Fields(
        inputs={
            "views": [torch.arange(3), torch.arange(6).view(3, 2)],
            "scale": torch.tensor(2.0),
            "mean": torch.zeros(5),
        },
        targets=np.array([4, 5, 6]),
        names=("a", "b", "c"),
    )
    selected = ProbeBatch(batch, torch.tensor([0, 1, 0])).select(torch.tensor([2, 0]))
    assert selected.groups.tolist() == [0, 0]
    found = selected.batch
    assert isinstance(found, Fields)
    assert [views.tolist() for views in found.inputs["views"]] == [[2, 0], [[4, 5], [0, 1]]]
    assert (found.inputs["scale"].item(), len(found.inputs["mean"])) == (2.0, 5)
    assert found.targets.tolist() == [6, 4]
    assert found.names == ("c", "a")


def test_a_batch_of_as_many_images_as_fields_is_not_mistaken() -> None:
    selected = ProbeBatch([torch.arange(2), [7, 8]], torch.tensor([0, 1])).select(torch.tensor([1]))
    assert selected.batch[0].tolist() == [1]
    assert selected.batch[1] == [8]


def test_stream_with_labels_in_lists() -> None:
    batches = [(inputs, targets.tolist()) for inputs, targets in list_of_batches()]
    own = probe(batches, 1)
    for batch in own.batches(own.available()):
        assert len(batch.batch[0]) == len(batch.batch[1])
    assert read(batches) == FIRST_3


def drop_first(samples: list[Any]) -> Any:
    return default_collate(samples[1:])


@pytest.mark.parametrize("dataset", [Stored, Plain], ids=["stored", "read"])
def test_a_collate_function_that_drops_images_is_refused(dataset: Callable[[], Any]) -> None:
    own = probe(loader(dataset(), collate_fn=drop_first))
    with pytest.raises(
        DataError, match="The collate_fn of the training data made 3 images out of 4, so which they are"
    ):
        own.available()


LABEL_ERRORS = [
    pytest.param([0, 1, 3, 0], r"targets holds labels from 0 to 3; expected 0 to 2, as .*num_classes=", id="too large"),
    pytest.param([0, -1, 2, 0], r"targets holds labels from -1 to 2; expected 0 to 2", id="negative"),
    pytest.param(
        [0.0, 1.0, 0.5, 0.0], r"targets is a float64 tensor of shape \[4\]; expected \[B\] integers", id="float"
    ),
    pytest.param(
        [[0, 1], [1, 0]] * 2, r"targets is a int64 tensor of shape \[4, 2\]; expected \[B\].*group_fn=", id="2-D"
    ),
    pytest.param(["a", "b", "c", "a"], r"targets is a tuple of 4; expected \[B\] integers", id="text"),
]


class Rows(Dataset[Any]):
    """Labels of any shape."""

    def __init__(self, labels: list[Any]) -> None:
        self.labels = [torch.tensor(label) if isinstance(label, list) else label for label in labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return torch.zeros(1, 2, 2), self.labels[index]


@pytest.mark.parametrize(("labels", "message"), LABEL_ERRORS)
def test_labels_that_do_not_fit_are_refused(labels: list[Any], message: str) -> None:
    dataset = Rows(labels)
    for source in (dataset, loader(dataset)):
        with pytest.raises(DataError, match=message):
            probe(source).available()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        pytest.param(
            torch.tensor([0, 1, 2]), "targets has 3 entries for a batch of 4 images; expected one each", id="length"
        ),
        pytest.param(torch.tensor(1), r"targets is a int64 tensor of shape \[\]; expected \[B\] integers", id="number"),
        pytest.param(torch.ones(4).cfloat(), r"targets is a complex64 tensor of shape \[4\]; expected", id="complex"),
        pytest.param(None, r"targets is a NoneType; expected \[B\] integers", id="None"),
        pytest.param([[0], [1, 2]], r"targets is a list of 2; expected \[B\] integers", id="ragged"),
        pytest.param({"label": 3}, r"targets is a dict; expected \[B\] integers", id="dict"),
    ],
)
def test_targets_of_a_batch_that_do_not_fit(targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        batch_groups(targets, 4, 3)


def test_what_group_fn_returns_is_named() -> None:
    with pytest.raises(DataError, match=r"group_fn\(targets\) holds labels from 5 to 5; expected 0 to 2"):
        batch_groups(torch.tensor([0]), 1, 3, lambda targets: targets + 5)
    with pytest.raises(
        DataError, match=r"group_fn\(targets\) is a float32 tensor of shape \[1\]; .* for each image\.$"
    ):
        batch_groups(torch.tensor([0]), 1, 3, lambda targets: targets / 2)


@pytest.mark.parametrize(
    "targets",
    [
        [0, 2],
        np.array([0, 2], dtype=np.int8),
        torch.tensor([0, 2], dtype=torch.uint8),
        torch.tensor([0, 2], dtype=torch.uint16),
        [torch.tensor(0), torch.tensor(2)],
    ],
    ids=["list", "int8 array", "uint8", "uint16", "list of tensors"],
)
def test_integers_of_any_kind_are_labels(targets: Any) -> None:
    groups = batch_groups(targets, 2, 3)
    assert groups.dtype == torch.int64
    assert groups.tolist() == [0, 2]


def test_truth_values_are_two_classes() -> None:
    assert batch_groups(torch.tensor([True, False]), 2, 2).tolist() == [1, 0]


def test_an_empty_batch_has_no_groups() -> None:
    assert batch_groups(torch.empty(0, dtype=torch.int64), 0, 3).tolist() == []


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        pytest.param((1, 2), (1, 2), id="pair"),
        pytest.param([1, 2, 3], (1, 2), id="more than a pair"),
        pytest.param({"label": 2, "image": 1}, (1, 2), id="dict"),
        pytest.param({"y": 2, "x": 1, "id": 3}, (1, 2), id="dict with more"),
        pytest.param({"pixel_values": 1, "labels": 2}, (1, 2), id="dict of transformers"),
    ],
)
def test_batches_are_taken_apart(batch: Any, expected: tuple[int, int]) -> None:
    assert split_batch(batch) == expected


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        pytest.param(
            torch.zeros(2, 3),
            r"A batch is a float32 tensor of shape \[2, 3\], which has no labels; .*batch_fn=",
            id="tensor",
        ),
        pytest.param(
            [torch.zeros(2)], "A batch is a list of 1, which has no labels; expected .inputs, targets.", id="one"
        ),
        pytest.param(
            {"image": 1, "caption": 2},
            "dict with keys 'image', 'caption'; expected one of .* for the labels",
            id="dict",
        ),
        pytest.param({}, "A batch is a dict with keys ; expected one of", id="empty dict"),
        pytest.param(None, "A batch is a NoneType, which has no labels", id="None"),
    ],
)
def test_batches_without_labels_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_batch(batch)


@pytest.mark.parametrize("returned", [3, (1, 2, 3)], ids=["number", "three"])
def test_what_batch_fn_returns_is_checked(returned: Any) -> None:
    with pytest.raises(DataError, match=r"batch_fn returned a .*; expected a pair \(inputs, targets\)"):
        split_batch(object(), lambda batch: returned)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        pytest.param(torch.zeros(3, 2), 3, id="tensor"),
        pytest.param({"a": [torch.zeros(4, 1)], "b": torch.zeros(2)}, 4, id="nested"),
        pytest.param({"scale": torch.tensor(2.0), "image": torch.zeros(5, 1)}, 5, id="number first"),
    ],
)
def test_images_are_counted(inputs: Any, expected: int) -> None:
    assert count_images(inputs) == expected


@pytest.mark.parametrize("inputs", ["text", torch.tensor(3)], ids=["text", "number"])
def test_inputs_without_images_are_refused(inputs: Any) -> None:
    with pytest.raises(DataError, match=r"The inputs of a batch are a .*; expected a tensor \[B, \.\.\.\] or a"):
        count_images(inputs)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            (batch for batch in []), "The training data are a generator, which can be read only once; ", id="generator"
        ),
        pytest.param(iter([]), "The training data are a list_iterator, which can be read only once; ", id="iterator"),
        pytest.param(7, "The training data are a int; ", id="number"),
        pytest.param({"a": loader()}, "The training data are a dict; ", id="dict"),
    ],
)
def test_sources_that_cannot_be_read_again_are_refused(source: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message + "expected a DataLoader, a Dataset, or a list of batches"):
        probe(source)


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


batches_of_groups = st.lists(st.lists(st.integers(-1, 4), max_size=7), min_size=1, max_size=5)


@settings(max_examples=120, deadline=None)
@given(batches=batches_of_groups, quota=st.lists(st.integers(0, 4), min_size=4, max_size=4))
def test_first_of_each_equals_a_plain_loop(batches: list[list[int]], quota: list[int]) -> None:
    """Of four groups; -1 and 4 are none."""
    seen, counted = torch.zeros(4, dtype=torch.int64), [0] * 4
    for groups in batches:
        expected = []
        for group in groups:
            known = 0 <= group < 4
            expected.append(known and counted[group] < quota[group])
            if known:
                counted[group] += 1
        chosen = first_of_each(torch.tensor(groups, dtype=torch.int64), seen, torch.tensor(quota))
        assert chosen.tolist() == expected
        assert seen.tolist() == counted


def test_random_states_come_back_after_an_error() -> None:
    own = np.random.default_rng(4)
    expected = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002

    def draw() -> None:
        torch.rand(3), np.random.rand(), random.random(), own.random()  # noqa: NPY002
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), preserve_rng(generators=[own]):
        draw()
    assert [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()] == expected  # noqa: NPY002
    assert own.random() == np.random.default_rng(4).random()
