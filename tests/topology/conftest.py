"""The fast backends, Triton under its interpreter where there is no GPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for topology_maps

FAST = ("torch", "numba", "triton")


@pytest.fixture(params=FAST)
def backend(request: pytest.FixtureRequest) -> str:
    """Each fast backend in turn."""
    name: str = request.param
    if name == "triton":
        pytest.importorskip("triton", reason="Triton has no package for this platform")
    return name


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
