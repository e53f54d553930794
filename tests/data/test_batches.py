"""Batches are taken apart, and labels checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_unitrole.data.batches import batch_groups, count_images, ranks_in_group, split_batch, within
from lightning_unitrole.errors import DataError


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


batches_of_groups = st.lists(st.lists(st.integers(-1, 4), max_size=7), min_size=1, max_size=5)


@settings(max_examples=120, deadline=None)
@given(
    batches=batches_of_groups,
    start=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    stop=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_places_equal_those_of_a_plain_loop(batches: list[list[int]], start: list[int], stop: list[int]) -> None:
    """Of four groups; -1 and 4 are none."""
    seen, counted = torch.zeros(4, dtype=torch.int64), [0] * 4
    for groups in batches:
        places, chosen = [], []
        for group in groups:
            known = 0 <= group < 4
            places.append(counted[group] if known else -1)
            chosen.append(known and start[group] <= counted[group] < stop[group])
            if known:
                counted[group] += 1
        of_batch = torch.tensor(groups, dtype=torch.int64)
        ranks = ranks_in_group(of_batch, seen)
        assert ranks.tolist() == places
        assert seen.tolist() == counted
        assert within(ranks, of_batch, torch.tensor(start), torch.tensor(stop)).tolist() == chosen
