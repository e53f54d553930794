"""With and without the monitor a run ends alike, bit for bit, whatever the model and the data hold.

Each scenario has a row in docs/promises.md that says what becomes of it.
"""

from __future__ import annotations

import io
import itertools
import random
import re
import threading
import zipfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from support import digits
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate
from unchanged import QUIETLY, Run, Tiny, alike, ends, fit, train_images

from lightning_unitrole.errors import SettingError
from lightning_unitrole.network.snapshot import Snapshot

pytestmark = QUIETLY
DOCS = Path(__file__).parents[2] / "docs" / "promises.md"

PROTECTED, REFUSED, DOCUMENTED = "protected", "refused", "documented"
SCENARIOS: dict[str, tuple[str, Callable[[], Run], str]] = {}
"""By title: what becomes of it, how it is set up, and what is said where it is refused."""


def scenario(title: str, outcome: str = PROTECTED, said: str = "") -> Callable[[Callable[[], Run]], Callable[[], Run]]:
    def note(make: Callable[[], Run]) -> Callable[[], Run]:
        SCENARIOS[title] = outcome, make, said
        return make

    return note


class Shifted(Dataset[Any]):
    """Digits that some state makes lighter or darker each time they are read."""

    def __init__(self, shift: Callable[[], float] = lambda: 0.0) -> None:
        self.digits, self.shift = train_images(), shift

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Any:
        image, label = self.digits[index]
        return image + self.shift(), label


def reads(dataset: Dataset[Any], **settings: Any) -> Run:
    return Run(train=DataLoader(dataset, batch_size=16, **{"shuffle": True, **settings}))


# Random number generators.


@scenario("nothing special")
def _() -> Run:
    return Run()


@scenario("a generator in an attribute of a transform")
def _() -> Run:
    return reads(Shifted(np.random.default_rng(1).random))


class ByClass(Shifted):
    generator = random.Random()

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + self.generator.random(), label


@scenario("a generator that is a class attribute")
def _() -> Run:
    ByClass.generator.seed(1)
    return Run(train=DataLoader(ByClass(), batch_size=16), state=lambda: ByClass.generator.random())


class Slotted:
    __slots__ = ("generator",)

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self) -> float:
        return float(torch.rand((), generator=self.generator))


@scenario("a generator in a slot")
def _() -> Run:
    return reads(Shifted(Slotted()))


class Many(Shifted):
    def __init__(self) -> None:
        super().__init__()
        self.generators = {index: np.random.default_rng(index) for index in range(100)}

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + self.generators[index].random(), label


@scenario("a hundred generators in a dict")
def _() -> Run:
    return reads(Many())


@scenario("a generator in a closure")
def _() -> Run:
    generator = random.Random(1)

    def shift() -> float:
        def draw() -> float:
            return generator.random()

        return draw()

    return reads(Shifted(shift))


GLOBAL = np.random.default_rng(1)


def _draw_globally() -> float:
    return float(GLOBAL.random())


@scenario("a generator that is a global variable")
def _() -> Run:
    GLOBAL.bit_generator.state = np.random.default_rng(1).bit_generator.state
    return reads(Shifted(_draw_globally))


# Counters and other state of the data.


class Counting(Shifted):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __getitem__(self, index: int) -> Any:
        self.count += 1
        image, label = super().__getitem__(index)
        return image + self.count % 7 / 7, label


@scenario("a dataset that counts in an attribute")
def _() -> Run:
    dataset = Counting()
    return Run(train=DataLoader(dataset, batch_size=16, shuffle=True), state=lambda: dataset.count)


class ClassCounting(Shifted):
    count = 0

    def __getitem__(self, index: int) -> Any:
        type(self).count += 1
        image, label = super().__getitem__(index)
        return image + self.count % 7 / 7, label


@scenario("a dataset that counts in its class")
def _() -> Run:
    ClassCounting.count = 0
    return reads(ClassCounting())


_calls = 0


def _count_globally() -> float:
    global _calls
    _calls += 1
    return _calls % 7 / 7


@scenario("a function that counts in a global variable")
def _() -> Run:
    global _calls
    _calls = 0
    return reads(Shifted(_count_globally))


@scenario("a function that counts in a variable of its closure")
def _() -> Run:
    count = 0

    def shift() -> float:
        nonlocal count
        count += 1
        return count % 7 / 7

    return reads(Shifted(shift))


class Caching(Shifted):
    """Adds a little to an image each time that it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}
        self.images = self.digits.tensors[0].clone()

    def __getitem__(self, index: int) -> Any:
        self.seen[index] = self.seen.get(index, 0) + 0.1
        self.images[index] += 0.1
        image, label = super().__getitem__(index)
        return image + self.images[index] + self.seen[index], label


@scenario("a dataset that fills a cache and works on its images in place")
def _() -> Run:
    return reads(Caching())


class StatefulCollate:
    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, samples: list[Any]) -> Any:
        self.batches += 1
        images, labels = default_collate(samples)
        return images * (1 + self.batches % 5 / 5), labels


@scenario("a collate function that counts")
def _() -> Run:
    return reads(Shifted(), collate_fn=StatefulCollate())


class EpochSampler(Sampler[int]):
    """Another order in each epoch, which it counts."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Ready(Dataset[Any]):
    """Yields batches."""

    def __init__(self) -> None:
        self.images, self.labels = train_images().tensors

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return self.images[index::4], self.labels[index::4]


@scenario("a sampler that counts epochs")
def _() -> Run:
    sampler = EpochSampler(64)
    return Run(train=DataLoader(Shifted(), batch_size=16, sampler=sampler), state=lambda: sampler.epoch)


@scenario("a sampler that counts epochs, with batch_size=None")
def _() -> Run:
    return Run(train=DataLoader(Ready(), batch_size=None, sampler=EpochSampler(4)))


class Locked(EpochSampler):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.lock = threading.Lock()


@scenario("a sampler that counts epochs and cannot be copied")
def _() -> Run:
    sampler = Locked(64)
    return Run(train=DataLoader(Shifted(), batch_size=16, sampler=sampler), state=lambda: sampler.epoch)


class Endless(Sampler[int]):
    def __init__(self) -> None:
        self.order = (index for _ in range(9) for index in range(64))

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.order, 64)


@scenario(
    "a sampler that goes on with one generator", REFUSED, "training data hold a generator, which cannot be rewound"
)
def _() -> Run:
    return reads(Shifted(), sampler=Endless(), shuffle=False)


def _noisy_split(batch: Any) -> Any:
    torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    return batch


@scenario("a batch_fn that draws random numbers")
def _() -> Run:
    return Run(monitor={"batch_fn": _noisy_split, "num_classes": 10})


@scenario("a dataset that counts in an object written in C", DOCUMENTED)
def _() -> Run:
    count = array("q", [0])

    def shift() -> float:
        count[0] += 1
        return count[0] % 7 / 7

    return reads(Shifted(shift))


# Streams.


class Shared(IterableDataset[Any]):
    """Goes on where it stopped."""

    def __init__(self, source: Iterator[int]) -> None:
        self.digits, self.source = train_images(), source

    def __iter__(self) -> Iterator[Any]:
        for index in itertools.islice(self.source, 64):
            yield self.digits[index]


ORDER = torch.randint(0, 64, (1280,), generator=torch.Generator().manual_seed(0)).tolist()


@scenario("a stream over one iterator of a list")
def _() -> Run:
    dataset = Shared(iter(ORDER))
    return Run(train=DataLoader(dataset, batch_size=16), state=lambda: next(dataset.source))


@scenario("a stream over one generator", REFUSED, "training data hold a generator, which cannot be rewound: reading it")
def _() -> Run:
    return Run(train=DataLoader(Shared(index for index in ORDER), batch_size=16))


@scenario("a stream over itertools.cycle", REFUSED, "training data hold a cycle, which cannot be rewound")
def _() -> Run:
    return Run(train=DataLoader(Shared(itertools.cycle(range(64))), batch_size=16))


@scenario("validation data that are a stream over one generator", REFUSED, "The validation data hold a generator")
def _() -> Run:
    return Run(val=DataLoader(Shared(index for index in ORDER), batch_size=16), trainer={"num_sanity_val_steps": 0})


class FromFile(IterableDataset[Any]):
    """Reads indices from an open file, and goes on where it stopped."""

    def __init__(self) -> None:
        self.digits, self.file = train_images(), io.BytesIO(bytes(ORDER))

    def __iter__(self) -> Iterator[Any]:
        for index in self.file.read(64):
            yield self.digits[index]


@scenario("a stream over an open file")
def _() -> Run:
    dataset = FromFile()
    return Run(train=DataLoader(dataset, batch_size=16), state=dataset.file.tell)


# Files that are read by workers.


class Zipped(Dataset[Any]):
    """Digits in a zip file, opened at the first read or at once."""

    path: Path

    def __init__(self, *, at_once: bool = False) -> None:
        self.labels = train_images().tensors[1].tolist()
        self.file = zipfile.ZipFile(self.path) if at_once else None
        self.at_once = at_once

    def __len__(self) -> int:
        return len(self.labels)

    def _open(self) -> zipfile.ZipFile:
        if self.file is None:
            self.file = zipfile.ZipFile(self.path)
        return self.file

    def __getitem__(self, index: int) -> Any:
        image = np.frombuffer(self._open().read(f"{index}.bin"), dtype=np.float32)
        return torch.tensor(image).view(1, 8, 8), self.labels[index]


class ZippedTargets(Zipped):
    @property
    def targets(self) -> list[int]:
        self._open()
        return self.labels


@pytest.fixture(scope="module", autouse=True)
def archive(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("data") / "digits.zip"
    with zipfile.ZipFile(path, "w") as file:
        for index, image in enumerate(train_images().tensors[0]):
            file.writestr(f"{index}.bin", image.numpy().tobytes())
    Zipped.path = path


class Checks(Tiny):
    """Counts images that are not what their label says: those of another place in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong, self.right = 0, 0
        images, labels = train_images().tensors
        self.known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for image, label in zip(*batch, strict=True):
            found = self.known.get(image.numpy().tobytes()) == int(label)
            self.right, self.wrong = self.right + found, self.wrong + (not found)
        return super().training_step(batch, batch_idx)


def zipped(dataset: Zipped, **settings: Any) -> Run:
    module = Checks()
    train = DataLoader(dataset, batch_size=8, num_workers=2, multiprocessing_context="fork", **settings)
    return Run(module, train, state=lambda: (module.wrong, module.right, dataset.file is None))


@scenario("a zip file that is opened at the first read, by workers")
def _() -> Run:
    return zipped(Zipped())


@scenario("a zip file behind a property `targets`, read by workers")
def _() -> Run:
    return zipped(ZippedTargets())


@scenario(
    "a zip file that is opened at once and read by workers", REFUSED, r"hold the open file '.*digits\.zip', whose"
)
def _() -> Run:
    return zipped(Zipped(at_once=True))


@scenario("workers that live on, and an augmentation with a generator")
def _() -> Run:
    return reads(Shifted(np.random.default_rng(1).random), num_workers=1, persistent_workers=True)


# State of the model.


class Buffered(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.count = self.count + 1
        return super().forward(images) * (1 + self.count % 7 / 7)


@scenario("a forward pass that assigns a new buffer")
def _() -> Run:
    return Run(Buffered())


class Remembering(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.count, self.memory, self.last = 0, [], {"mean": 0.0}

    def forward(self, images: Tensor) -> Tensor:
        self.count += 1
        logits = super().forward(images) * (1 + self.count % 7 / 7) + self.last["mean"]
        self.memory.append(self.count)
        self.last["mean"] = float(logits.detach().mean()) + len(self.memory) % 3
        return logits


@scenario("a forward pass that writes attributes, a list and a dict")
def _() -> Run:
    return Run(Remembering())


class InSlots:
    __slots__ = ("count", "mean")

    def __init__(self) -> None:
        self.count, self.mean = 0, torch.zeros(4)

    def step(self) -> float:
        self.count += 1
        self.mean += 0.01
        return self.count % 7 / 7 + float(self.mean[0])


class WithSlots(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.helper = InSlots()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 + self.helper.step())


@scenario("a helper object with slots that the forward pass changes")
def _() -> Run:
    return Run(WithSlots())


class OfTheClass(Tiny):
    count = 0

    def forward(self, images: Tensor) -> Tensor:
        OfTheClass.count += 1
        return super().forward(images) * (1 + OfTheClass.count % 7 / 7)


@scenario("a forward pass that counts in its class")
def _() -> Run:
    OfTheClass.count = 0
    return Run(OfTheClass())


class OwnNoise(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + torch.rand(images.shape, generator=self.generator))


@scenario("a forward pass that draws from a generator of its own")
def _() -> Run:
    return Run(OwnNoise())


class GlobalNoise(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + GLOBAL.random(dtype=np.float32))


@scenario("a forward pass that draws from a global generator")
def _() -> Run:
    GLOBAL.bit_generator.state = np.random.default_rng(1).bit_generator.state
    return Run(GlobalNoise())


class Measured(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.mean = torchmetrics.MeanMetric()
        self.all = torchmetrics.CatMetric()

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        self.mean.update(logits.detach().mean())
        self.all.update(logits.detach().mean())
        return logits + self.mean.compute() + len(self.all.value) % 5


@scenario("metrics that the forward pass updates")
def _() -> Run:
    return Run(Measured())


class Hook:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.calls += 1
        return output * (1 + self.calls % 7 / 7)


@scenario("a hook with a state")
def _() -> Run:
    module = Tiny()
    module.first.register_forward_hook(Hook())
    return Run(module)


@scenario("a hook that removes itself")
def _() -> Run:
    module = Tiny()
    module.second.register_forward_hook(_change_once(module.second))
    return Run(module, trainer={"num_sanity_val_steps": 0})


def _change_once(layer: nn.Module) -> Callable[..., None]:
    def change(module: nn.Module, args: Any, output: Any) -> None:
        handle = next(iter(layer._forward_hooks))
        del layer._forward_hooks[handle]
        if module.training:
            module.weight.data += 0.1  # only if training comes first

    return change


class Grows(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        if not hasattr(self, "more"):
            self.more = nn.Linear(1, 1)
        return super().forward(images) * (1 + self.more.weight.detach().abs())


@scenario("a layer that is made by the first forward pass")
def _() -> Run:
    return Run(Grows(), trainer={"num_sanity_val_steps": 0})


class Taught(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.teacher = [nn.BatchNorm2d(1)]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + self.teacher[0](images).detach())


@scenario("a hidden network in training mode, held in a list")
def _() -> Run:
    module = Taught()
    return Run(module, state=lambda: module.teacher[0].running_mean.tolist())


class Tied(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(4)
        self.other.weight, self.other.running_mean = self.norm.weight, self.norm.running_mean

    def forward(self, images: Tensor) -> Tensor:
        self.other.running_mean += 0.01
        return super().forward(images)


@scenario("modules that share tensors, changed in place")
def _() -> Run:
    return Run(Tied())


class Transfers(Tiny):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] + torch.rand(()), batch[1]


@scenario("a transfer hook with a random augmentation")
def _() -> Run:
    return Run(Transfers())


class Lazy(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.LazyConv2d(4, 3, padding=1)


@scenario("lazy modules, after a sanity check")
def _() -> Run:
    return Run(Lazy(), trainer={"num_sanity_val_steps": 1})


@scenario("lazy modules without a sanity check")
def _() -> Run:
    return Run(Lazy(), trainer={"num_sanity_val_steps": 0})


class Clamps(Tiny):
    def forward(self, images: Tensor) -> Tensor:
        self.first.weight.data.clamp_(min=0)
        return super().forward(images)


@scenario(
    "a forward pass that changes parameters", REFUSED, "Clamps changes its parameter 'first.weight' in evaluation"
)
def _() -> Run:
    return Run(Clamps(), trainer={"num_sanity_val_steps": 0})


class Cycles(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.factors = itertools.cycle([1.0, 1.1, 1.3])

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * next(self.factors)


@scenario("a forward pass that goes on with itertools.cycle", DOCUMENTED)
def _() -> Run:
    return Run(Cycles())


class Writes(Tiny):
    """Counts its calls in a file."""

    path: Path

    def forward(self, images: Tensor) -> Tensor:
        calls = len(self.path.read_text()) if self.path.exists() else 0
        self.path.write_text("." * (calls + 1))
        return super().forward(images) * (1 + calls % 7 / 7)


@scenario("a forward pass that writes a file and reads it again", DOCUMENTED)
def _() -> Run:
    Writes.path = Zipped.path.with_name("calls")
    Writes.path.unlink(missing_ok=True)
    return Run(Writes())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("title", SCENARIOS)
def test_a_run_ends_alike_with_and_without_the_monitor(title: str) -> None:
    outcome, make, said = SCENARIOS[title]
    if outcome == REFUSED:
        started = make()
        before = [one.detach().clone() for one in started.module.parameters() if not is_lazy(one)]
        with pytest.raises(SettingError, match=said):
            fit(lambda: started, looked_at=True)
        assert alike(before, [one.detach() for one in started.module.parameters() if not is_lazy(one)])
        return
    expected, _ = fit(make, looked_at=False)
    without = ends(expected)
    found, watching = fit(make, looked_at=True)
    assert watching.report is not None
    assert alike(without, ends(found)) == (outcome == PROTECTED)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "title",
    ["a dataset that counts in an attribute", "a stream over an open file", "a forward pass that assigns a new buffer"],
)
def test_without_the_snapshot_it_would_not(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ends(fit(SCENARIOS[title][1], looked_at=False)[0])
    monkeypatch.setattr(Snapshot, "restore", lambda snapshot: [])
    assert not alike(expected, ends(fit(SCENARIOS[title][1], looked_at=True)[0]))


def test_no_image_was_wrong() -> None:
    run, _ = fit(lambda: zipped(Zipped(), shuffle=True), looked_at=True)
    assert (run.module.wrong, run.module.right) == (0, 128)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_may_be_started_otherwise(method: str) -> None:
    def make() -> Run:
        return Run(train=DataLoader(digits(64, size=8), batch_size=16, num_workers=1, multiprocessing_context=method))

    expected = ends(fit(make, looked_at=False)[0])
    run, watching = fit(make, looked_at=True)
    assert watching.report is not None
    assert alike(expected, ends(run))


def test_the_table_in_the_documentation_is_this_one() -> None:
    rows = re.findall(r"^\| (.+?) \| (protected|refused|documented) \|", DOCS.read_text(encoding="utf-8"), re.M)
    assert dict(rows) == {title: outcome for title, (outcome, _, _) in SCENARIOS.items()}
    counts = {
        kind: sum(outcome == kind for outcome, _, _ in SCENARIOS.values()) for kind in (PROTECTED, REFUSED, DOCUMENTED)
    }
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"Scenarios: {told}.")
    assert f"{len(SCENARIOS)} scenarios: {told}" in DOCS.read_text(encoding="utf-8")
