"""What a snapshot notes and puts back, and what it says it cannot."""

from __future__ import annotations

import io
import logging
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from unchanged import QUIETLY, Tiny

from lightning_unitrole.data.loaders import check_readable
from lightning_unitrole.errors import DataError, SettingError, TraceError
from lightning_unitrole.network import reachable as traversal
from lightning_unitrole.network import snapshot
from lightning_unitrole.network.isolation import undisturbed, untouched
from lightning_unitrole.network.reachable import reachable
from lightning_unitrole.network.snapshot import Snapshot, find_obstacles, find_open_files
from lightning_unitrole.network.undo import TensorValue

pytestmark = QUIETLY


class Holder:
    """Holds one thing."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing


def counter() -> Counter[str]:
    return Counter(a=2, b=1)


COLLECTIONS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1, 2], lambda value: value.append(3)),
    "dict": (lambda: {"a": 1}, lambda value: value.update(a=2, b=3)),
    "set": (lambda: {1}, lambda value: value.add(2)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda value: value.append(3)),
    "Counter": (counter, lambda value: value.update("aab")),
    "OrderedDict": (lambda: OrderedDict(a=1, b=2), lambda value: value.move_to_end("a")),
    "defaultdict": (lambda: defaultdict(list, a=[1]), lambda value: value["b"]),
    "namespace": (lambda: SimpleNamespace(a=1), lambda value: setattr(value, "a", 2)),
    "tensor": (lambda: torch.zeros(3), lambda value: value.add_(1)),
    "array": (lambda: np.zeros(3), lambda value: value.__iadd__(1)),
    "tensor with NaN": (lambda: torch.tensor([float("nan"), 1.0]), lambda value: value.add_(1)),
    "nested": (lambda: {"a": [deque([1])]}, lambda value: value["a"][0].append(2)),
}


@pytest.mark.parametrize(("make", "change"), COLLECTIONS.values(), ids=COLLECTIONS)
def test_collections_get_their_entries_back(make: Callable[[], Any], change: Callable[[Any], Any]) -> None:
    holder = Holder(make())
    thing = holder.thing
    noted = Snapshot(holder)
    change(holder.thing)
    assert repr(thing) != repr(make())
    assert noted.restore() == []
    assert holder.thing is thing
    assert repr(thing) == repr(make())


def test_attributes_that_were_added_go_and_those_that_were_deleted_come_back() -> None:
    holder = Holder([1])
    noted = Snapshot(holder)
    holder.more, thing = 3, holder.thing  # type: ignore[attr-defined]
    del holder.thing
    noted.restore()
    assert vars(holder) == {"thing": [1]}
    assert holder.thing is thing


@pytest.mark.parametrize("thing", [[1, 2, 3], (1, 2, 3), range(1, 4), "123", {1: 1, 2: 1, 3: 1}], ids=type)
def test_iterators_over_collections_are_read_through_copies(thing: Any) -> None:
    holder = Holder(iter(thing))
    next(holder.thing)
    live = holder.thing
    with untouched(holder):
        assert len(list(holder.thing)) == 2
        assert holder.thing is not live
    assert holder.thing is live
    assert len(list(live)) == 2


def endless() -> Iterator[int]:
    while True:
        yield 1


@pytest.mark.parametrize("thing", [endless(), map(abs, [1]), zip([1], strict=False), enumerate([1])], ids=type)
def test_other_iterators_are_obstacles(thing: Any) -> None:
    assert find_obstacles(Holder([{"a": thing}])) == [f"a {type(thing).__name__}"]
    with pytest.raises(DataError, match="which cannot be rewound, so they were not read"), untouched(Holder(thing)):
        pass


def test_a_text_file_that_is_read_line_by_line_is_an_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("1\n2\n3\n")
    with path.open() as file:
        assert find_obstacles(Holder(file)) == []
        next(file)
        assert find_obstacles(Holder(file)) == [f"the file {str(path)!r}, which is being read line by line"]


def test_open_files_are_found_and_rewound(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file, (tmp_path / "log").open("w") as log:
        file.read(3)
        holder = Holder([file, log, io.BytesIO(b"123")])
        with untouched(holder):
            file.read(4)
        assert file.read(1) == b"3"
        assert find_open_files(holder) == [str(path)]
    assert find_open_files(holder) == []
    with zipfile.ZipFile(tmp_path / "file.zip", "w") as archive:
        archive.writestr("a", "a")
    with zipfile.ZipFile(tmp_path / "file.zip") as archive:
        assert find_open_files(Holder(archive)) == [str(tmp_path / "file.zip")]


def test_looking_for_obstacles_changes_nothing() -> None:
    class Holding(Dataset[Any]):
        def __init__(self) -> None:
            self.order = iter([1, 2])

    dataset = Holding()
    live = dataset.order
    check_readable(DataLoader(dataset, sampler=[0]), name="training")
    assert dataset.order is live


def test_what_goes_on_living_is_left_alone() -> None:
    logger = logging.getLogger("something of the tests")
    holder = Holder([logger, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)])
    noted = Snapshot(holder)
    logger.marked, holder.thing[1].marked = True, True  # type: ignore[attr-defined]
    noted.restore()
    assert logger.marked  # type: ignore[attr-defined]
    assert holder.thing[1].marked


def test_near_objects_come_before_large_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversal, "MOST_OBJECTS", 500)
    last = Holder("near")
    holder = Holder([[(index, [index]) for index in range(10_000)], {"a": {"b": {"c": last}}}])
    assert any(value is last for value in reachable(holder))


class Moving(Dataset[Any]):
    """Holds more than is copied, and changes it."""

    def __init__(self) -> None:
        self.images = torch.zeros(1000)


def test_what_is_too_large_to_be_put_back_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "COPIED_BYTES", 100)
    dataset = Moving()
    said = r"Reading the data changes a tensor of shape \[1000\] that they hold"
    with pytest.raises(DataError, match=said), untouched(dataset):
        dataset.images[3] += 1
    with untouched(dataset):
        dataset.images.sum()


class Bank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.memory = nn.Linear(2, 2), [torch.zeros(1000)]
        self.register_buffer("bank", torch.zeros(1000))

    def forward(self, images: Tensor, *, everywhere: bool = False) -> Tensor:
        self.bank[0] += 1
        if everywhere:
            self.memory[0][0] += 1
        return self.layer(images)


def test_buffers_are_copied_whatever_their_size_and_other_tensors_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "COPIED_BYTES", 100)
    bank = Bank()
    with undisturbed(bank):
        bank(torch.zeros(1, 2))
    assert float(bank.bank.sum()) == 0
    said = r"The forward pass of Bank changed a tensor of shape \[1000\] that it holds"
    with pytest.raises(TraceError, match=said), undisturbed(bank):
        bank(torch.zeros(1, 2), everywhere=True)
    assert float(bank.bank.sum()) == 0
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), undisturbed(bank):
        bank(torch.zeros(1, 3), everywhere=True)  # the fault itself is what is told


def test_buffers_are_copied_once_in_nested_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = TensorValue.__init__

    def count(self: Any, tensor: Tensor) -> None:
        made.append(tensor.numel())
        real(self, tensor)

    monkeypatch.setattr(TensorValue, "__init__", count)
    bank = Bank()
    with undisturbed(bank), undisturbed(bank):
        with undisturbed(bank):
            bank(torch.zeros(1, 2))
        assert not bank.training
    assert sorted(made) == [1000, 1000]
    assert float(bank.bank.sum()) == 0
    assert bank.training


def test_a_buffer_of_another_shape_gets_its_own_back() -> None:
    bank = Bank()
    bank.memory = []
    before = bank.bank
    with undisturbed(bank):
        before.data = torch.ones(3)
        bank.other = nn.Linear(1, 1)
        bank.bank = torch.zeros(2)
    assert bank.bank is before
    assert bank.bank.shape == (1000,)
    assert not hasattr(bank, "other")


def test_a_parameter_that_changes_is_put_back_and_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = net[1].bias.detach().clone()
    said = r"of Sequential changes its parameter '1\.bias' in evaluation mode"
    with pytest.raises(SettingError, match=said), undisturbed(net, parameters=True):
        net[1].bias.data += 1
    assert torch.equal(net[1].bias, before)
    with torch.no_grad():
        net[0].bias[0] = float("nan")
    with undisturbed(net, parameters=True):
        net(torch.zeros(1, 2))


def test_a_reading_that_a_fault_leaves_begun_ends_with_the_analysis() -> None:
    class Counting(Dataset[Any]):
        def __init__(self) -> None:
            self.count = 0

    def read() -> Iterator[int]:
        with untouched(dataset):
            while True:
                dataset.count += 1
                yield dataset.count

    dataset, net = Counting(), Tiny()
    reading = read()
    with pytest.raises(RuntimeError, match="to have 1 channels"), undisturbed(net):
        net(torch.zeros(next(reading), 7, 2, 2))
    assert dataset.count == 0
    dataset.count = 5  # training goes on
    reading.close()
    assert dataset.count == 5


def test_hooks_that_are_left_behind_go_and_those_that_were_removed_come_back() -> None:
    net = Tiny()
    kept = net.first.register_forward_hook(lambda *_: None)
    with undisturbed(net):
        kept.remove()
        net.second.register_forward_pre_hook(lambda *_: None)
        net.head.register_full_backward_hook(lambda *_: None)
    assert [*net.first._forward_hooks] == [kept.id]
    assert not net.second._forward_pre_hooks
    assert not net.head._backward_hooks
