"""No trace is left of having read data: random states, iterators, workers."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numbered import FIRST_3, LABELS, SOURCES, NoisyStream, Spread, Stored, Stream, loader, probe, read
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler, Subset, default_collate

from lightning_unitrole.data.loaders import as_batches, first_batch
from lightning_unitrole.network.isolation import find_generators, preserve_rng, seed_rng


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_leaves_the_global_random_states(source: Callable[[], Any]) -> None:
    data = source()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert read(data) == FIRST_3
    first_batch(as_batches(data, name="training"), name="training")
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def noise(source: Any, wanted: int = 4, seed: int = 0, **shard: int) -> dict[int, float]:
    """What noise the images of a source were read with, by number."""
    own = probe(source, wanted, seed=seed)
    found: dict[int, float] = {}
    for batch in own.batches(own.available(), **shard):
        for value in batch.batch[0][:, 0, 0, 0].tolist():
            found[int(value // 3)] = value
    return found


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


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
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
