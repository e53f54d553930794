"""What is asked for in numbers: memory, the size of checkpoints, and input that makes no sense."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from unchanged import QUIETLY, Tiny, monitor, val_images

from lightning_unitrole import compare_criteria, cumulative_ablation, feature_entropy
from lightning_unitrole.errors import DataError
from lightning_unitrole.ranking import entropy
from lightning_unitrole.ranking.criteria import UnitStatistics
from lightning_unitrole.reports.report import UnitReport

pytestmark = QUIETLY
VGG16 = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def size(state: Any) -> int:
    file = io.BytesIO()
    torch.save(state, file)
    return file.tell()


def test_the_monitors_state_is_below_a_hundredth_of_a_checkpoint() -> None:
    """A VGG-16 for 100 classes of 32x32 images, all of its layers watched."""
    watching, classes = monitor(layers="all"), 100
    watching._before = {
        f"features.{index}": torch.randint(0, 4, (classes, width), dtype=torch.uint8)
        for index, width in enumerate(VGG16)
    }
    network = {
        f"features.{index}": torch.rand(after, before, 3, 3)
        for index, (before, after) in enumerate(zip([3, *VGG16[:-1]], VGG16, strict=True))
    } | {"head": torch.rand(classes, 512)}
    share = size(watching.state_dict()) / size(network)
    print(f"The monitor's state takes {100 * share:.2f} % of the network's own checkpoint.")
    assert share < 0.01


@pytest.mark.parametrize("shape", [(7, 5, 51), (40, 51), (51,), (3, 2, 4, 9), (0, 5, 51), (5, 0, 51), (1, 30, 51)])
@pytest.mark.parametrize("kind", [torch.int64, torch.float64])
def test_feature_entropy_in_slices_has_the_same_bits(
    shape: tuple[int, ...], kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = torch.randint(0, 9, shape, generator=torch.Generator().manual_seed(0)).to(kind)
    whole = feature_entropy(counts)
    for slice_size in (1, 60, 1000):
        monkeypatch.setattr(entropy, "_SLICE", slice_size)
        for one, other in zip(feature_entropy(counts), whole, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


MEMORY = """
import resource, torch
torch.set_num_threads(1)
from lightning_unitrole import feature_entropy
counts = torch.ones(250, 2048, 51, dtype=torch.int64)
feature_entropy(counts[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
feature_entropy(counts)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_feature_entropy_takes_little_memory() -> None:
    """At [250, 2048, 51] the histograms are 200 MiB; all at once would take three times that."""
    arguments = [sys.executable, "-c", MEMORY]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 60 * 1024  # KiB


@pytest.mark.parametrize("counts", [torch.tensor([3, -1, 2]), torch.tensor([[3.0, 1.0], [-0.5, 2.0]])])
def test_negative_counts_are_refused(counts: Tensor) -> None:
    with pytest.raises(DataError, match=r"counts holds -\d.*; expected numbers of images, none below 0"):
        feature_entropy(counts)


def network() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


def test_empty_batches_are_skipped() -> None:
    images, labels = val_images().tensors
    full = [(images[:20], labels[:20]), (images[20:], labels[20:])]
    empty = (images[:0], labels[:0])
    expected = cumulative_ablation(network(), "second", range(4), full)
    for data in ([empty, *full], [full[0], empty, full[1]], iter([empty, *full, empty])):
        found = cumulative_ablation(network(), "second", range(4), data)
        torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)


@pytest.mark.parametrize("points", [None, 4])
def test_nothing_but_empty_batches_are_no_images(points: int | None) -> None:
    images, labels = val_images().tensors
    with pytest.raises(DataError, match="data has no images; expected at least one batch"):
        cumulative_ablation(network(), "second", range(4), [(images[:0], labels[:0])] * 2, points=points)


def test_two_functions_without_a_name_are_both_compared() -> None:
    ways = [lambda statistics: by_activation(statistics), lambda statistics: -by_activation(statistics)]
    few: dict[str, Any] = {"images_per_class": 2, "ablation_points": 4, "layers": ["second"]}
    compared = compare_criteria(network(), val_images(), criteria=ways, **few)
    curves = compared.layers["second"]
    assert list(curves) == ["<lambda>", "<lambda>#1"]
    one, other = curves.values()
    torch.testing.assert_close(one.least_first.loss, other.most_first.loss, rtol=0, atol=0)


def by_activation(statistics: UnitStatistics) -> Tensor:
    assert statistics.activation is not None
    return statistics.activation.sum(0, keepdim=True).expand_as(statistics.activation)


def test_a_report_of_no_layers_is_one_too() -> None:
    empty = UnitReport(layers={}, skipped={}, class_names=("a",), criterion="taylor")
    assert UnitReport.from_state_dict(empty.state_dict()).table() == empty.table()
