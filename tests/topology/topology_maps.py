"""Maps and truths shared by the topology tests."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

DATA = Path(__file__).parent.parent / "data"


def recorded() -> list[pytest.param]:
    """Every recorded set of maps with the births that the authors' program found, as pytest parameters."""
    cases = []
    for file in ("synthetic", "resnet20"):
        with np.load(DATA / f"{file}.npz") as archive:
            for name in archive:
                if name.startswith("maps_"):
                    births = torch.from_numpy(archive[f"birth_{name[5:]}"]).long()
                    cases.append(pytest.param(torch.from_numpy(archive[name]), births, id=f"{file}-{name[5:]}"))
            if "class_maps" in archive:
                births = torch.from_numpy(archive["class_births"]).long()
                cases.append(pytest.param(torch.from_numpy(archive["class_maps"]), births, id=f"{file}-class"))
    return cases


def quantised(levels: int, *shape: int, seed: int = 0, relu: bool = False) -> Tensor:
    """Integer-valued maps with many ties."""
    maps = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(seed)).float()
    return (maps - levels // 2).relu() if relu else maps


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
