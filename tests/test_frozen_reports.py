"""What the published definitions give has not changed since the reports in ``data/reports`` were written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from frozen import REPORTS, SETTINGS, exact_digits, exact_resnet, exact_vgg
from torch import nn

from lightning_unitrole import UnitReport, analyze

NETWORKS: dict[str, Callable[[], nn.Module]] = {"vgg": exact_vgg, "resnet": exact_resnet}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("criterion", ["feature_entropy", "taylor"])
@pytest.mark.parametrize("network", ["vgg", pytest.param("resnet", marks=pytest.mark.slow)])
def test_the_report_is_that_of_before(network: str, criterion: str) -> None:
    path = REPORTS / f"{network}_{criterion}.npz"
    with np.load(path) as stored:
        keys = [key for key in stored.files if key != "meta"]
    before = UnitReport.load(path).state_dict()["arrays"]
    found = analyze(
        NETWORKS[network](),
        exact_digits(300),
        exact_digits(300, start=1000),
        criterion=criterion,
        **SETTINGS,
    ).state_dict()["arrays"]
    for key in keys:
        values = before[key]
        assert found[key].dtype == values.dtype, key
        if values.is_floating_point():  # logarithms and softmax differ in the last digit from processor to processor
            torch.testing.assert_close(found[key], values, rtol=1e-12, atol=1e-12, equal_nan=True, msg=key)
        else:
            assert torch.equal(found[key], values), key
