"""The images that units contribute most to and respond to most, against all images looked at one by one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from support import Digits, loaders, make_trainer
from torch import Tensor, nn

from lightning_unitrole import UnitReport, UnitRoleMonitor
from lightning_unitrole.ablation.examples import ExampleCollector, find_twins, make_thumbnails
from lightning_unitrole.data.sample import Images
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.units import UnitLayer, find_unit_layers
from lightning_unitrole.reports.examples import SplitExamples, room_for

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch's own deprecations, raised by Lightning
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

IMAGES = torch.rand(20, 3, 12, 10, generator=torch.Generator().manual_seed(0))
GROUPS = torch.arange(20) % 4


def net() -> tuple[nn.Sequential, UnitLayer]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
    return model, next(iter(find_unit_layers(model, model, IMAGES[:2]).layers.values()))


def collect(runner: Runner, layer: UnitLayer, contributions: Tensor, usable: Tensor) -> SplitExamples:
    """What the collector finds in the images of one process."""
    collector = ExampleCollector(runner, [layer], 20, IMAGES[:2], twins=True)
    for rows in torch.arange(20)[runner.shard :: runner.shards].split(6):
        collector.begin(Images(IMAGES[rows], GROUPS[rows], GROUPS[rows], torch.zeros_like(rows)))
        collector.add(layer, runner.forward(IMAGES[rows]), contributions[rows], usable[rows])
    return collector.result()


@torch.no_grad()
def test_the_best_images_of_each_unit_are_those_of_a_search_through_all() -> None:
    model, layer = net()
    contributions = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    usable = torch.ones(20, dtype=torch.bool)
    usable[contributions[:, 0].argmax()] = False
    found = collect(Runner(model), layer, contributions, usable)
    maps = model(IMAGES)
    every = make_thumbnails(IMAGES, 64)
    for kind, values in enumerate((contributions, maps.amax((2, 3)))):
        values = torch.where(usable.unsqueeze(1), values.double(), -torch.inf)
        for unit in range(5):
            best = values[:, unit].argsort(descending=True)[:3]
            examples = found.layers[layer.name]
            assert torch.equal(found.thumbnails[examples.images[kind, :, unit]], every[best])
            assert torch.equal(found.classes[examples.images[kind, :, unit]], GROUPS[best])
            torch.testing.assert_close(examples.values[kind, :, unit].double(), values[best, unit])
            small = nn.functional.adaptive_avg_pool2d(maps[best, unit], (7, 7))
            shades = examples.maps[kind, :, unit].double()
            scale = float(shades.max() / small.max())
            torch.testing.assert_close(shades, scale * small.double(), atol=1.1, rtol=0)
    assert int(found.layers[layer.name].maps.amax((0, 1, 3, 4)).min()) == 255


@torch.no_grad()
def test_two_processes_find_what_one_does() -> None:
    model, layer = net()
    contributions = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    usable = torch.ones(20, dtype=torch.bool)

    class Half(Runner):
        """One of two processes."""

        shards = 2
        everyone = threading.Barrier(2)
        given: ClassVar[dict[int, Tensor]] = {}

        def __init__(self, shard: int) -> None:
            super().__init__(model)
            self.shard = shard

        def total(self, values: Tensor) -> Tensor:
            self.given[self.shard] = values
            self.everyone.wait(30)
            summed = self.given[0] + self.given[1]
            self.everyone.wait(30)
            return summed

    def work(shard: int) -> SplitExamples:
        with torch.no_grad():  # each thread has its own switch
            return collect(Half(shard), layer, contributions, usable)

    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(work, range(2)))
    one = collect(Runner(model), layer, contributions, usable)
    for found in halves:
        assert torch.equal(found.thumbnails, one.thumbnails)
        assert torch.equal(found.classes, one.classes)
        for name in ("images", "values", "maps", "twins"):
            assert torch.equal(getattr(found.layers[layer.name], name), getattr(one.layers[layer.name], name))


def test_twins_contribute_to_the_same_images() -> None:
    values = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values[:, 4] = 2 * values[:, 1] + 0.1 * values[:, 0]
    values[:, 5] = 3.0
    twins, correlation = find_twins(torch.tensor(200), values.sum(0), values.T @ values, units=6)
    truth = torch.corrcoef(values[:, :5].T)
    assert (twins[0, 1], twins[0, 4]) == (4, 1)
    torch.testing.assert_close(correlation[0, 1].double(), truth[1, 4])
    assert bool((twins[:, 5] == -1).all())  # it does the same to every image
    assert not bool((twins == 5).any())


@pytest.mark.parametrize(
    ("inputs", "shape"),
    [
        pytest.param(torch.rand(2, 3, 100, 50), (2, 32, 16, 3), id="shrunk"),
        pytest.param({"image": torch.rand(2, 1, 8, 8)}, (2, 8, 8, 1), id="grey, in a dict"),
        pytest.param(torch.rand(2, 4, 8, 8), None, id="four channels"),
        pytest.param(torch.rand(2, 8), None, id="no image"),
        pytest.param("text", None, id="nothing"),
    ],
)
def test_thumbnails_of_images_alone(inputs: Any, shape: tuple[int, ...] | None) -> None:
    found = make_thumbnails(inputs, 32)
    assert (None if found is None else tuple(found.shape)) == shape
    if found is not None:
        assert (int(found.min()), int(found.max())) == (0, 255)


def test_room_is_bounded() -> None:
    for units in (1, 700, 2000, 5000, 100_000):
        room = room_for(units)
        assert units * 4 * room.images * (12 + room.map_side**2) <= 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [True, False])
def test_the_monitor_keeps_images_where_it_may(tmp_path: Path, wanted: bool) -> None:
    monitor = UnitRoleMonitor(
        layers="all", images_per_class=6, ablation_points=2, log_images=wanted, log_figures=False, every_n_epochs=1
    )
    make_trainer(monitor, logger=TensorBoardLogger(tmp_path)).fit(Digits(), *loaders())
    report = monitor.report
    assert report is not None
    assert set(report.examples) == ({"train", "val"} if wanted else set())
    assert len(monitor.history) == 1
    assert not monitor.history[0].examples
    assert not UnitReport.from_state_dict(report.state_dict()).examples
