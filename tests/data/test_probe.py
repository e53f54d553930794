"""Images by class: the right ones, and the same ones each time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numbered import (
    BY_CLASS,
    FIRST_3,
    LABELS,
    SOURCES,
    Plain,
    Stored,
    Stream,
    list_of_batches,
    loader,
    numbers,
    probe,
    read,
)
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from lightning_unitrole.data.loaders import first_batch
from lightning_unitrole.data.probe import Probe, ProbeBatch
from lightning_unitrole.errors import DataError, SettingError


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_reads_the_first_of_every_class(source: Callable[[], Any]) -> None:
    assert read(source()) == FIRST_3


@pytest.mark.sampled(2)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_shards_together_read_what_one_does(source: Callable[[], Any]) -> None:
    quota = torch.tensor([3, 1, 2])
    whole = numbers(probe(source()).batches(quota))
    assert sorted(whole) == sorted([*BY_CLASS[0][:3], *BY_CLASS[1][:1], *BY_CLASS[2][:2]])
    for shards in (2, 3, 8):
        parts = [numbers(probe(source()).batches(quota, shard=shard, shards=shards)) for shard in range(shards)]
        assert sorted(chain.from_iterable(parts)) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


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
    dataset.forget()
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


def test_remembered_images_are_read_without_looking() -> None:
    dataset = Plain()
    own = probe(dataset)
    list(own.batches(torch.tensor([1, 1, 1])))
    dataset.forget()
    own.remember(torch.tensor([17, 4, 5, 16]), torch.tensor([0, 0, 2, 1]))
    assert own.available().tolist() == [2, 1, 1]
    assert dataset.read == []
    assert numbers(own.batches(torch.tensor([1, 1, 1]))) == [5, 16, 17]


def test_small_probes_are_read_once_until_they_are_released() -> None:
    dataset = Stored()
    own = probe(loader(dataset))
    quota = own.available()
    dataset.forget()
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


def test_large_probes_are_not_kept() -> None:
    dataset = Stored()
    own = probe(loader(dataset))
    quota = own.available()
    dataset.forget()
    for _ in range(2):
        assert numbers(own.batches(quota, kept_bytes=100)) == FIRST_3
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
def test_one_group_of_all_takes_the_first_images(source: Callable[[], Any]) -> None:
    own = Probe(source(), name="training", num_groups=1, images_per_group=5, group_fn=torch.zeros_like)
    found = [batch.batch[0][:, 0, 0, 0].tolist() for batch in own.batches(own.available())]
    assert [*chain.from_iterable(found)] == [0, 1, 2, 3, 4]


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
    whole = ProbeBatch(batch, torch.tensor([0, 1, 0]), torch.tensor([4, 0, 5]))
    selected = whole.select(torch.tensor([2, 0]))
    assert selected.groups.tolist() == [0, 0]
    assert selected.ranks.tolist() == [5, 4]
    found = selected.batch
    assert isinstance(found, Fields)
    assert [views.tolist() for views in found.inputs["views"]] == [[2, 0], [[4, 5], [0, 1]]]
    assert (found.inputs["scale"].item(), len(found.inputs["mean"])) == (2.0, 5)
    assert found.targets.tolist() == [6, 4]
    assert found.names == ("c", "a")


def test_a_batch_of_as_many_images_as_fields_is_not_mistaken() -> None:
    selected = ProbeBatch([torch.arange(2), [7, 8]], torch.tensor([0, 1]), torch.zeros(2)).select(torch.tensor([1]))
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
