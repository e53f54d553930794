"""How fast birth points are found, beside ripser.py, gudhi and a plain copy of the same maps.

    python benchmarks/birth_points.py [--sizes 8 14 28 56 112] [--threads 2] [--repeats 7] [--device cpu] [--markdown]

Every backend first proves that it gives ripser's births on samples of the very maps that are timed; if one does
not, the program says so and prints no figure at all. Times are medians of interleaved repeats; ratios are taken
within one run. The backend `ripser` stops at the last step that can matter; `ripser.py` is the library called
plainly, on the whole filtration. The copy is shown twice: into memory that is already there (``copy_``), and into
new memory (``clone``), which is what keeping the activations would cost.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from lightning_unitrole.topology import birth_points
from lightning_unitrole.topology.definition import MAX_BIRTH, MAX_DENSITY, step_limit
from lightning_unitrole.topology.ripser_backend import step_numbers

BUDGETS = {14: 300, 28: 600, 56: 1500}
"""How many times ripser.py's speed is asked for, by side."""
COPY_BUDGET = {"cpu": 0.25, "cuda": 0.5}
WORK = 24 << 20
"""Elements of the maps of one timing: several times the caches of a desktop processor."""
GATE = 40
"""Maps of each kind on which every backend is compared with ripser before anything is timed."""


def convolved(side: int, count: int) -> Tensor:
    """Post-ReLU activations of untrained 3x3 convolutions with batch normalisation on real photographs."""
    from sklearn.datasets import load_sample_images

    photographs = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float() / 255
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
    )  # fmt: skip
    patches = []
    while sum(len(patch) for patch in patches) * 64 < count:
        top, left = (int(torch.randint(0, limit - 2 * side, (), generator=generator)) for limit in (427, 640))
        window = photographs[:, :, top : top + 2 * side, left : left + 2 * side]
        patches.append(nn.functional.interpolate(window, size=(side, side), mode="bilinear"))
    with torch.no_grad():
        return torch.cat([net(batch) for batch in torch.cat(patches).split(64)])[: -(-count // 64)].contiguous()


def recorded(side: int, count: int) -> Tensor:
    """Post-ReLU maps of a trained CIFAR-10 ResNet-20, repeated to the number asked for."""
    path = os.path.join(os.path.dirname(__file__), "..", "tests", "data", "resnet20.npz")
    with np.load(path) as archive:
        maps = torch.from_numpy(archive[{8: "maps_layer3_2", 16: "maps_layer2_2", 32: "maps_layer1_2"}[side]])
    return maps.repeat(-(-count // len(maps)), 1, 1)[:count][None]


def workloads(sides: list[int]) -> Iterator[tuple[str, int, Tensor]]:
    """Kind, side and maps ``[B, U, side, side]``."""
    for side in sides:
        count = max(64, WORK // side**2)
        yield "random", side, torch.randn(-(-count // 64), 64, side, side)
        activations = convolved(side, count)
        yield "conv on photos", side, activations
        yield "conv on photos, bf16", side, activations.bfloat16()
        yield "conv on photos, NHWC", side, activations.contiguous(memory_format=torch.channels_last)
        if side in (8, 16, 32):
            yield "trained ResNet-20", side, recorded(side, count)


def with_gudhi(maps: Tensor) -> list[int]:
    """Births by gudhi's Rips complex, one map at a time."""
    import gudhi

    births = []
    for map_ in maps.double().flatten(0, -3).numpy():
        steps = step_limit(*map_.shape, MAX_BIRTH, MAX_DENSITY)
        tree = gudhi.RipsComplex(distance_matrix=step_numbers(map_), max_edge_length=steps).create_simplex_tree(2)
        # persistence_dim_max: without a single triangle, dimension 1 is the complex's own and would be left out.
        tree.compute_persistence(homology_coeff_field=2, persistence_dim_max=True)
        begin = tree.persistence_intervals_in_dimension(1)[:, 0]
        births.append(int(begin.min()) - 1 if len(begin) else 0)
    return births


def with_plain_ripser(maps: Tensor) -> list[int]:
    """Births by ripser.py as one would call it: one map at a time, the whole filtration."""
    from ripser import ripser

    births = []
    for map_ in maps.double().flatten(0, -3).numpy():
        bars = ripser(step_numbers(map_), maxdim=1, distance_matrix=True)["dgms"][1]
        birth = int(bars[:, 0].min()) - 1 if len(bars) else 0
        births.append(birth if birth < step_limit(*map_.shape, MAX_BIRTH, MAX_DENSITY) else 0)
    return births


def with_giotto(maps: Tensor) -> list[int]:
    """Births by giotto-ph, one map at a time."""
    from gph import ripser_parallel

    births = []
    for map_ in maps.double().flatten(0, -3).numpy():
        steps = step_limit(*map_.shape, MAX_BIRTH, MAX_DENSITY)
        bars = ripser_parallel(step_numbers(map_), maxdim=1, thresh=steps, metric="precomputed", n_threads=1)["dgms"][1]
        births.append(int(bars[:, 0].min()) - 1 if len(bars) else 0)
    return births


def backends(device: torch.device) -> dict[str, Callable[[Tensor], object]]:
    """Everything that can run here."""
    found: dict[str, Callable[[Tensor], object]] = {}
    for name in ("numba", "triton", "torch", "ripser"):
        try:
            birth_points(torch.zeros(4, 4, device=device), backend=name)
        except ImportError as error:  # noqa: PERF203
            print(f"{name} is left out: {error}")
        else:
            found[name] = lambda maps, name=name: birth_points(maps, backend=name)
    for module, label, function in (
        ("ripser", "ripser.py", with_plain_ripser),
        ("gudhi", "gudhi", with_gudhi),
        ("gph", "giotto-ph", with_giotto),
    ):
        try:
            __import__(module)
        except ImportError:  # noqa: PERF203
            print(f"{label} is left out: it is not installed")
        else:
            found[label] = lambda maps, function=function: function(maps.cpu())
    return found


def gate(kind: str, side: int, maps: Tensor, found: dict[str, Callable[[Tensor], object]]) -> list[str]:
    """What is wrong with the births of any backend on some of these maps."""
    part = maps[:: max(1, len(maps) // 4), :: max(1, maps.shape[1] // (GATE // 4))]
    truth = birth_points(part.cpu().double(), backend="ripser").flatten()
    wrong = []
    for name, function in found.items():
        births = torch.as_tensor(function(part)).cpu().flatten()
        if not torch.equal(births, truth):
            wrong.append(f"{name}, {kind} {side}x{side}: {int((births != truth).sum())} of {len(truth)} births differ")
    return wrong


def seconds(function: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def rates(
    maps: Tensor, found: dict[str, Callable[[Tensor], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Maps a second of every backend and of the copies: medians of repeats that take turns."""
    device, total = maps.device, maps.shape[0] * maps.shape[1]
    target = torch.empty_like(maps)
    slow = max(1, min(maps.shape[1], 20000 // maps.shape[-1] ** 2))
    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (lambda: target.copy_(maps), total),
        "clone": (lambda: maps.clone(), total),
    }
    for name, function in found.items():
        if name in ("numba", "triton"):
            jobs[name] = (lambda function=function: function(maps), total)
        elif name == "torch":
            part = maps[: max(1, len(maps) // 8)]
            jobs[name] = (lambda function=function, part=part: function(part), part.shape[0] * part.shape[1])
        else:
            few = maps[len(maps) // 2, :slow]
            jobs[name] = (lambda function=function, few=few: function(few), len(few))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for function, _ in jobs.values():
        function()
    for _ in range(repeats):
        for name, (function, _) in jobs.items():
            times[name].append(seconds(function, device, clock))
    return {name: jobs[name][1] / statistics.median(times[name]) for name in jobs}


def machine(device: torch.device) -> str:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    text = f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}; {text}" if device.type == "cuda" else text


def versions() -> str:
    names = ("torch", "numba", "triton", "ripser", "gudhi", "giotto-ph")
    parts = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:  # noqa: PERF203
            continue
    return ", ".join(parts)


def run(sides: list[int], repeats: int, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> int:
    """The whole benchmark; returns the exit status."""
    found = backends(device)
    prepared = [(kind, side, maps.to(device)) for kind, side, maps in workloads(sides)]
    wrong = [line for kind, side, maps in prepared for line in gate(kind, side, maps, found)]
    if wrong:
        print("The births are wrong, so there are no figures:", *wrong, sep="\n  ")
        return 1
    print(f"{datetime.date.today()}; {machine(device)}; {versions()}")
    print("Every backend gave ripser's births on samples of these maps. ")
    unit = "processor time" if clock is time.process_time else "wall-clock time"
    print(f"Thousands of maps a second of {unit}:\n")
    names = ["copy", "clone", *found]
    fast = next(iter(found))
    header = ["maps", "side", *names, f"{fast}/ripser.py", f"{fast}/copy", f"{fast}/clone"]
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for kind, side, maps in prepared:
        rate = rates(maps, found, repeats, clock)
        ratios = [rate[fast] / rate["ripser.py"], rate[fast] / rate["copy"], rate[fast] / rate["clone"]]
        cells = [kind, str(side), *(f"{rate[name] / 1e3:,.4g}" for name in names)]
        asked = BUDGETS.get(side)
        cells += [
            f"{ratios[0]:,.0f}x" + (f" (asked {asked}x)" if asked else ""),
            f"{ratios[1]:.0%}",
            f"{ratios[2]:.0%}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print(f"\nAsked of the copy: {COPY_BUDGET.get(device.type, 0.25):.0%}.")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 14, 16, 28, 56, 112], help="sides of the maps")
    parser.add_argument("--threads", type=int, default=None, help="threads (default: torch's own choice)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor time: for a CPU that others use too, with --threads 1",
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    clock = time.process_time if arguments.processor_time else time.perf_counter
    return run(arguments.sizes, arguments.repeats, torch.device(arguments.device), clock)


if __name__ == "__main__":
    sys.exit(main())
