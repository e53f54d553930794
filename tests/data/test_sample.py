"""The images of an analysis: which, of which half, and in which process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numbered import BY_CLASS, LABELS, SOURCES, Stored, list_of_batches, loader, probe
from torch import Tensor, nn

from lightning_unitrole.data.sample import Images, Sample
from lightning_unitrole.network.runner import Runner


class OneOfSeveral(Runner):
    """One of several processes."""

    def __init__(self, shard: int, shards: int) -> None:
        super().__init__(nn.Linear(1, 1))
        self.shard, self.shards = shard, shards


def sample(source: Any, quota: list[int], start: list[int] | None = None, *, runner: Runner | None = None) -> Sample:
    first = torch.tensor(start or [0, 0, 0])
    return Sample(probe(source, wanted=8), torch.tensor(quota), first, runner or Runner(nn.Linear(1, 1)))


def halves_of(images: list[Images]) -> dict[int, int]:
    """The half of each image, by its number."""
    found: dict[int, int] = {}
    for batch in images:
        own = batch.inputs[:, 0, 0, 0].int().tolist()
        assert batch.groups.tolist() == batch.targets.tolist() == [LABELS[number] for number in own]
        found |= dict(zip(own, batch.halves.tolist(), strict=True))
    return found


PLAIN = {name: source for name, source in SOURCES.items() if name not in ("loader, dicts", "loader, numpy labels")}


@pytest.mark.parametrize("source", PLAIN.values(), ids=PLAIN)
def test_every_second_image_of_a_class_is_odd(source: Callable[[], Any]) -> None:
    found = halves_of([*sample(source(), [5, 4, 6])])
    wanted = [numbers[:size] for numbers, size in zip(BY_CLASS, (5, 4, 6), strict=True)]
    assert found == {number: place % 2 for numbers in wanted for place, number in enumerate(numbers)}


@pytest.mark.parametrize("source", PLAIN.values(), ids=PLAIN)
def test_later_images_of_a_class_keep_their_places(source: Callable[[], Any]) -> None:
    one = sample(source(), [7, 5, 2], [4, 1, 2])
    assert one.images.tolist() == [3, 4, 0]
    assert one.num_groups == 3
    expected = {BY_CLASS[0][place]: place % 2 for place in (4, 5, 6)}
    expected |= {BY_CLASS[1][place]: place % 2 for place in (1, 2, 3, 4)}
    assert halves_of([*one]) == expected


@pytest.mark.parametrize("source", [loader, list_of_batches], ids=["indices", "stream"])
@pytest.mark.parametrize("shards", [2, 3])
def test_processes_share_the_images_and_agree_on_halves(source: Callable[[], Any], shards: int) -> None:
    whole = halves_of([*sample(source(), [6, 5, 6], [1, 0, 2])])
    parts = [
        halves_of([*sample(source(), [6, 5, 6], [1, 0, 2], runner=OneOfSeveral(shard, shards))])
        for shard in range(shards)
    ]
    assert sum(map(len, parts)) == len(whole) == 14
    assert {number: half for part in parts for number, half in part.items()} == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_disjoint_parts_of_one_probe_share_no_image_and_are_kept_apart() -> None:
    own = probe(loader(Stored()), wanted=8)
    runner = Runner(nn.Linear(1, 1))
    zeros, middle, end = (torch.tensor([size] * 3) for size in (0, 2, 4))
    first, second = Sample(own, middle, zeros, runner), Sample(own, end, middle, runner)
    for _ in range(2):  # the second time from memory
        one, other = halves_of([*first]), halves_of([*second])
        assert len(one) == len(other) == 6
        assert not one.keys() & other.keys()
    first.release()
    assert halves_of([*second]) == other


def test_batches_are_taken_apart_by_the_users_function() -> None:
    def swapped(batch: Any) -> tuple[Tensor, Tensor]:
        return batch["labels"], batch["pixels"]

    batches = [{"labels": inputs, "pixels": targets} for inputs, targets in list_of_batches()]
    own = probe(batches, batch_fn=swapped)
    one = Sample(own, own.available(), torch.zeros(3, dtype=torch.int64), Runner(nn.Linear(1, 1)), swapped)
    assert len(halves_of([*one])) == 9
