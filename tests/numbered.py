"""Numbered images with labels, in everything that holds images; a helper of the tests of ``data``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from lightning_unitrole.data.batches import split_batch
from lightning_unitrole.data.probe import Probe, ProbeBatch

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
        self._calls = Mock()  # not a list: what user's own objects hold is put back after reading

    @property
    def read(self) -> list[int]:
        return [call.args[0] for call in self._calls.call_args_list]

    def forget(self) -> None:
        self._calls.reset_mock()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        self._calls(index)
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


class Spread(Noisy):
    """Image ``i`` is between ``3 i`` and ``3 i + 3``."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, target = super().__getitem__(index)
        return image + 2 * index, target
