"""On a CUDA machine: compare every backend with ripser, on the GPU, then print the speed tables.

    python benchmarks/cuda_check.py

First the recorded answers and many maps with ties, in float32, float16, bfloat16 and float64, contiguous and
channels_last, square and not, births and counted histograms; then that ``auto`` keeps triton after it has tried it on
every size; then that nothing waits for the device; then ``birth_points.py`` on the GPU. Stops with an error, and
without figures, at the first thing that is wrong.
"""

import os
import sys
import warnings

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, os.path.dirname(__file__))
import birth_points as benchmark

from lightning_unitrole.topology import birth_points, count_births

DATA = os.path.join(os.path.dirname(__file__), "..", "tests", "data")


def recorded() -> list[tuple[str, Tensor, Tensor]]:
    """Name, maps and births that the authors' program found."""
    cases = []
    for file in ("synthetic", "resnet20"):
        with np.load(os.path.join(DATA, f"{file}.npz")) as archive:
            for name in archive:
                if name.startswith("maps_"):
                    births = torch.from_numpy(archive[f"birth_{name[5:]}"]).long()
                    cases.append((f"{file} {name}", torch.from_numpy(archive[name]), births))
    return cases


def made() -> list[tuple[str, Tensor]]:
    """Name and maps ``[B, U, H, W]``: every size class of the kernel, with and without ties."""
    cases = []
    for height, width in (
        (4, 4),
        (7, 7),
        (14, 14),
        (16, 16),
        (17, 17),
        (28, 28),
        (33, 33),
        (56, 56),
        (9, 14),
        (30, 12),
        (112, 112),
    ):
        count = max(1, 6000 // max(height, width) ** 2)
        torch.manual_seed(height * 1000 + width)
        cases.append((f"random {height}x{width}", torch.randn(2, count, height, width)))
        cases.append((f"rectified {height}x{width}", torch.randn(2, count, height, width).relu()))
        for levels in (2, 5, 30):
            maps = torch.randint(0, levels, (2, count, height, width)).float()
            cases.append((f"{levels} levels {height}x{width}", maps))
    cases.append(("random 256x256", torch.randn(1, 2, 256, 256)))
    return cases


def differences(backend: str, device: torch.device) -> list[str]:
    """What ``backend`` gets wrong."""
    wrong = []
    for name, maps, births in recorded():
        found = birth_points(maps.to(device), backend=backend).cpu()
        if not torch.equal(found, births):
            wrong.append(f"{backend}: {name}: {int((found != births).sum())} of {births.numel()} differ")
    for name, maps in made():
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            truth = birth_points(maps.to(dtype).double(), backend="ripser")
            for form in (torch.contiguous_format, torch.channels_last):
                on_device = maps.to(device, dtype).contiguous(memory_format=form)
                found = birth_points(on_device, backend=backend).cpu()
                if not torch.equal(found, truth):
                    count = f"{int((found != truth).sum())} of {truth.numel()} differ"
                    wrong.append(f"{backend}: {name} {dtype} {form}: {count}")
        wrong += count_differences(name, maps, backend, device)
    return wrong


def count_differences(name: str, maps: Tensor, backend: str, device: torch.device) -> list[str]:
    truth = birth_points(maps, backend="ripser")
    groups = torch.arange(len(maps)) - 1  # the first image is skipped
    for dtype in (torch.int16, torch.int32, torch.int64):
        counts = torch.zeros(2, maps.shape[1], 51, dtype=dtype, device=device)
        lost = torch.zeros(2, maps.shape[1], dtype=torch.int32, device=device)
        count_births(maps.to(device), groups.to(device), counts, lost, backend=backend)
        expected = torch.zeros(2, maps.shape[1], 51, dtype=torch.int64)
        for image in range(1, len(maps)):
            expected[image - 1].scatter_add_(1, truth[image][:, None], torch.ones_like(truth[image][:, None]))
        if not torch.equal(counts.cpu().long(), expected) or lost.any():
            return [f"{backend}: {name}: counts in {dtype} differ"]
    return []


def doubts(device: torch.device) -> list[str]:
    """The warnings with which ``auto`` gives triton up."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _, maps in made():
            groups = torch.zeros(len(maps), dtype=torch.int64, device=device)
            counts = torch.zeros(1, maps.shape[1], 51, dtype=torch.int16, device=device)
            lost = torch.zeros(1, maps.shape[1], dtype=torch.int32, device=device)
            for dtype in (torch.float32, torch.bfloat16):
                count_births(maps.to(device, dtype), groups, counts, lost)
    return [f"auto: {warning.message}" for warning in said]


def waits(device: torch.device) -> list[str]:
    """Backends with which counting makes the host wait for the device."""
    maps = torch.randn(4, 64, 14, 14, device=device)
    groups = torch.zeros(4, dtype=torch.int64, device=device)
    counts = torch.zeros(1, 64, 51, dtype=torch.int16, device=device)
    lost = torch.zeros(1, 64, dtype=torch.int32, device=device)
    wrong = []
    for backend in ("triton", "auto"):
        count_births(maps, groups, counts, lost, backend=backend)  # compiles, tries, and makes the table of edges
        torch.cuda.set_sync_debug_mode("error")
        try:
            count_births(maps, groups, counts, lost, backend=backend)
        except (RuntimeError, ImportError) as error:
            wrong.append(f"{backend} waits for the device: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return wrong


def main() -> int:
    if not torch.cuda.is_available():
        print("There is no CUDA device here.")
        return 2
    device = torch.device("cuda")
    wrong = [line for backend in ("triton", "torch") for line in differences(backend, device)]
    wrong += doubts(device) + waits(device)
    if wrong:
        print("Wrong on this machine, so there are no figures:", *wrong, sep="\n  ")
        return 1
    print("triton and torch on the GPU give ripser's births on every map tried, and counting does not wait.\n")
    return benchmark.run([8, 14, 16, 28, 56, 112], 15, device)


if __name__ == "__main__":
    sys.exit(main())
