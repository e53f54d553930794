from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.ranking.entropy import FeatureEntropy, birth_histogram, feature_entropy

GOLDEN = Path(__file__).parent / "data" / "resnet20.npz"

LN2 = math.log(2)
NAN = math.nan


@pytest.mark.parametrize(
    ("counts", "entropy", "selective_rate", "ineffectiveness"),
    [
        pytest.param([0, 5, 0], 0.0, 0.0, 0.0, id="one bin"),
        pytest.param([0, 3, 3], LN2, 0.0, LN2, id="two equal bins"),
        pytest.param([6, 1, 1], LN2, 0.75, 4 * LN2, id="three of four images without a birth"),
        pytest.param([0, 1, 3], 2 * LN2 - 0.75 * math.log(3), 0.0, 2 * LN2 - 0.75 * math.log(3), id="one to three"),
        pytest.param([1, 0, 7], 0.0, 0.125, 0.0, id="one bin and one image without a birth"),
        pytest.param([7, 0, 0], NAN, 1.0, NAN, id="no birth"),
        pytest.param([0, 0, 0], NAN, NAN, NAN, id="no image"),
    ],
)
def test_small_histograms(counts: list[int], entropy: float, selective_rate: float, ineffectiveness: float) -> None:
    found = feature_entropy(torch.tensor(counts))
    expected = [torch.tensor(value, dtype=torch.float64) for value in (entropy, selective_rate, ineffectiveness)]
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-12, equal_nan=True)


def test_entropy_of_one_bin_is_not_minus_zero() -> None:
    assert not torch.signbit(feature_entropy(torch.tensor([0, 5, 0]))[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32])
def test_sums_do_not_overflow_the_type_of_the_counts(dtype: torch.dtype) -> None:
    counts = torch.full((7,), 100).to(dtype)
    assert feature_entropy(counts)[0] == pytest.approx(math.log(6))
    assert feature_entropy(counts)[1] == pytest.approx(1 / 7)


def test_agrees_with_the_published_program() -> None:
    golden = np.load(GOLDEN)
    births = torch.from_numpy(golden["class_births"]).long()
    expected = torch.from_numpy(golden["class_entropy_selective_ineffectiveness"])
    counts = birth_histogram(births, torch.zeros(len(births), dtype=torch.int64), 1)[0]
    found = torch.stack(feature_entropy(counts), dim=-1)
    born = (births > 0).any(0)
    assert int(born.sum()) > 40
    torch.testing.assert_close(found[born], expected[born], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 1], expected[:, 1], rtol=0, atol=1e-6)


def _histogram_by_loop(births: Tensor, targets: Tensor, num_classes: int, max_birth: int) -> Tensor:
    counts = torch.zeros(num_classes, births.shape[1], max_birth + 1, dtype=torch.int64)
    for image, target in enumerate(targets.tolist()):
        for unit in range(births.shape[1]):
            counts[target, unit, int(births[image, unit])] += 1
    return counts


@settings(max_examples=40, deadline=None)
@given(images=st.integers(0, 17), units=st.integers(1, 5), classes=st.integers(1, 4), seed=st.integers(0, 999))
def test_histogram_equals_a_plain_loop(images: int, units: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    births = torch.randint(0, 8, (images, units), generator=generator)
    targets = torch.randint(0, classes, (images,), generator=generator)
    found = birth_histogram(births, targets, classes, max_birth=7)
    assert torch.equal(found, _histogram_by_loop(births, targets, classes, 7))


histograms = st.lists(st.integers(0, 40), min_size=2, max_size=51).filter(any)


@settings(max_examples=150, deadline=None)
@given(counts=histograms)
def test_bounds(counts: list[int]) -> None:
    entropy, selective_rate, ineffectiveness = map(float, feature_entropy(torch.tensor(counts)))
    assert 0 <= selective_rate <= 1
    assert (selective_rate == 1) == (not any(counts[1:]))
    if any(counts[1:]):
        assert 0 <= entropy <= math.log(len(counts) - 1) + 1e-12
        assert ineffectiveness >= entropy
        assert ineffectiveness == pytest.approx(entropy / (1 - selective_rate))


@settings(max_examples=60, deadline=None)
@given(counts=histograms, data=st.data(), factor=st.integers(2, 9))
def test_bins_with_a_birth_may_change_places_and_all_may_be_multiplied(
    counts: list[int], data: st.DataObject, factor: int
) -> None:
    moved = [counts[0], *data.draw(st.permutations(counts[1:]))]
    for other in (torch.tensor(moved), torch.tensor(counts) * factor):
        for value, wanted in zip(feature_entropy(other), feature_entropy(torch.tensor(counts)), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_bin_0_is_not_one_of_them() -> None:
    assert feature_entropy(torch.tensor([4, 1, 3]))[0] != feature_entropy(torch.tensor([1, 4, 3]))[0]


def test_batch_equals_loop() -> None:
    counts = torch.randint(0, 5, (3, 7, 11), generator=torch.Generator().manual_seed(2))
    whole = feature_entropy(counts)
    for index in np.ndindex(3, 7):
        for value, wanted in zip(whole, feature_entropy(counts[index]), strict=True):
            assert torch.equal(value[index], wanted)


@pytest.mark.parametrize("shape", [(), (1,), (4, 1)], ids=str)
def test_counts_without_bins_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"counts has shape .*; expected \[\.\.\., max_birth \+ 1\]"):
        feature_entropy(torch.zeros(shape))


def _births(images: int = 23, units: int = 5, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 10, (images, units), generator=generator),
        torch.randint(0, classes, (images,), generator=generator),
    )


def test_metric_equals_the_function() -> None:
    births, targets = _births()
    metric = FeatureEntropy(num_classes=3, num_units=5, max_birth=9)
    for start in range(0, 23, 7):
        metric.update(births[start : start + 7], targets[start : start + 7])
    expected = feature_entropy(birth_histogram(births, targets, 3, max_birth=9))
    for value, wanted in zip(metric.compute(), expected, strict=True):
        assert value.shape == (3, 5)
        assert torch.equal(value, wanted)


def test_forward_returns_the_batch_and_keeps_the_sum() -> None:
    births, targets = _births()
    metric = FeatureEntropy(num_classes=3, num_units=5, max_birth=9)
    metric(births[:11], targets[:11])
    of_batch = metric(births[11:], targets[11:])
    expected = feature_entropy(birth_histogram(births[11:], targets[11:], 3, max_birth=9))
    for value, wanted in zip(of_batch, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(metric.counts, birth_histogram(births, targets, 3, max_birth=9))


def test_reset_forgets() -> None:
    births, targets = _births()
    metric = FeatureEntropy(num_classes=3, num_units=5)
    metric.update(births, targets)
    metric.reset()
    assert metric.counts.shape == (3, 5, 51)
    assert not metric.counts.any()


TWO_PROCESSES = """
import sys
import torch
import torch.distributed
from lightning_unitrole.ranking.entropy import FeatureEntropy

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
generator = torch.Generator().manual_seed(0)
births = torch.randint(0, 10, (23, 5), generator=generator)
targets = torch.randint(0, 3, (23,), generator=generator)
metric = FeatureEntropy(num_classes=3, num_units=5, max_birth=9)
metric.update(births[rank::2], targets[rank::2])
torch.save([metric.compute(), metric.counts], f"{out}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_together_report_what_one_does(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path / "store"), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    births, targets = _births()
    expected = feature_entropy(birth_histogram(births, targets, 3, max_birth=9))
    for rank in range(2):
        found, own = torch.load(tmp_path / f"{rank}.pt")
        for value, wanted in zip(found, expected, strict=True):
            assert torch.equal(value, wanted)
        assert torch.equal(own, birth_histogram(births[rank::2], targets[rank::2], 3, max_birth=9))


@pytest.mark.parametrize(
    ("births", "targets", "message"),
    [
        pytest.param([[3, 10]], [0], r"births holds values from 3 to 10; expected 0 to 9 \(max_birth\)", id="birth"),
        pytest.param([[3, -1]], [0], r"births holds values from -1 to 3; expected 0 to 9", id="negative birth"),
        pytest.param(
            [[3, 1]], [3], r"targets holds values from 3 to 3; expected 0 to 2 \(num_classes - 1\)", id="label"
        ),
        pytest.param([[3, 1]], [-1], r"targets holds values from -1 to -1; expected 0 to 2", id="negative label"),
        pytest.param(
            [[3, 1]], [0, 1], r"births has shape \[1, 2\] and targets \[2\]; expected \[B, U\] and \[B\]", id="length"
        ),
        pytest.param([[3.0, 1.0]], [0], r"births has type float32; expected integers", id="float births"),
        pytest.param([[3, 1]], [0.0], r"targets has type float32; expected integers", id="float labels"),
        pytest.param([[3, 1, 2]], [0], r"births has shape \[1, 3\]; expected \[B, 2\]", id="units"),
        pytest.param([3, 1], [0, 0], r"births has shape \[2\]; expected \[B, 2\]", id="dimensions"),
    ],
)
def test_batches_that_do_not_fit_are_refused(births: list[int], targets: list[int], message: str) -> None:
    metric = FeatureEntropy(num_classes=3, num_units=2, max_birth=9)
    with pytest.raises(DataError, match=message):
        metric.update(torch.tensor(births), torch.tensor(targets))
    assert not metric.counts.any()


@pytest.mark.parametrize("name", ["num_classes", "num_units", "max_birth"])
@pytest.mark.parametrize("value", [0, 2.5], ids=str)
def test_sizes_must_be_positive_integers(name: str, value: float) -> None:
    sizes = {"num_classes": 2, "num_units": 2, "max_birth": 2, name: value}
    with pytest.raises(SettingError, match=rf"{name}={value}; expected a positive integer\."):
        FeatureEntropy(**sizes)  # type: ignore[arg-type]
