"""The fast backends, Triton under its interpreter where there is no GPU."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for topology_maps

from topology_maps import Subject

FAST = ("torch", "numba", "triton")


def _device(backend: str) -> torch.device:
    if backend == "triton":
        pytest.importorskip("triton", minversion="3.0", reason="no Triton here, or one whose interpreter lacks much")
    return torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")


@pytest.fixture(params=FAST)
def backend(request: pytest.FixtureRequest) -> str:
    """Each fast backend in turn."""
    name: str = request.param
    _device(name)
    return name


@pytest.fixture
def device(backend: str) -> torch.device:
    return _device(backend)


@pytest.fixture(params=[*FAST, pytest.param("triton-all", marks=pytest.mark.slow)])
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each fast backend on all cases, and Triton, whose interpreter takes element by element, also on a few of them."""
    name, _, everything = request.param.partition("-")
    device = _device(name)
    return Subject(name, device, few=name == "triton" and device.type == "cpu" and not everything)
