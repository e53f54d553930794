"""A batch of which no image is counted: every class is full, as in most batches of a long validation epoch."""

from __future__ import annotations

import pytest
import torch

from lightning_unitrole.topology import count_births


@pytest.mark.parametrize("backend", ["ripser", "torch", "numba"])
def test_a_batch_without_counted_images_changes_nothing(backend: str) -> None:
    counts = torch.zeros(2, 3, 51, dtype=torch.int32)
    non_finite = torch.zeros(2, 3, dtype=torch.int64)
    count_births(torch.rand(4, 3, 8, 8), torch.full((4,), -1), counts, non_finite, backend=backend)
    assert not counts.any()
    assert not non_finite.any()
