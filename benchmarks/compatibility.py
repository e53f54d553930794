"""Which networks are analysed, and how: a page made of torchvision's classifiers with random weights and small images.

    python benchmarks/compatibility.py                # all, to docs/compatibility.md
    python benchmarks/compatibility.py resnet18 vit_b_16

Of each network up to six layers, evenly spread, are recorded and replayed with random halves of their units at zero;
a replay counts as exact if the outputs are those of the whole network with the same units at zero, up to rounding.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision

from lightning_unitrole.ablation.engine import run_switched_off
from lightning_unitrole.ablation.recorder import record_all
from lightning_unitrole.ablation.tape import UnreplayableError
from lightning_unitrole.ablation.verification import Replay, verify
from lightning_unitrole.errors import UnitRoleError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.units import find_unit_layers, select_layers

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
IMAGES, TRIED, SIZE = 5, 6, 64
SIZES = {"inception_v3": 96, "alexnet": 96}
OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
LARGEST = 100_000_000
"""Parameters; larger networks are scaled-up versions of others on the page, which is written from the smallest on."""


class Row(NamedTuple):
    """What is said of one network."""

    name: str
    layers: int
    automatic: int
    tried: int
    exact: int
    seconds: float
    reason: str


def networks() -> list[str]:
    """Names of torchvision's classifiers."""
    return [str(name) for name in torchvision.models.list_models(module=torchvision.models)]


def parameters(name: str) -> int:
    """How many a network has, by what is known of its weights."""
    known = torchvision.models.get_model_weights(name)
    return int(next(iter(known)).meta["num_params"])


def make(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """A network with random weights, and images for it."""
    torch.manual_seed(0)
    size = SIZES.get(name, SIZE)
    options = dict(OPTIONS.get(name, {}))
    if name.startswith("vit_"):
        size = size // int(name.rpartition("_")[2]) * int(name.rpartition("_")[2])
        options["image_size"] = size
    if name == "maxvit_t":
        size = 224
    net = torchvision.models.get_model(name, weights=None, num_classes=10, **options).eval()
    return net, torch.rand(IMAGES, 3, size, size)


def look_at(name: str) -> Row:
    """Find, record, replay and compare."""
    net, images = make(name)
    begun = time.monotonic()
    runner = Runner(net)
    try:
        with runner.undisturbed():
            found = find_unit_layers(net, net, images[:2])
            automatic = select_layers(found, "auto", smallest=4)
            every = [*found.main.values()]
            count = min(TRIED, len(every))
            layers = [every[place * (len(every) - 1) // max(count - 1, 1)] for place in range(count)]
            tapes = record_all(runner, layers, images, {layer.name: set() for layer in layers})
            levels, reasons = [], []
            for layer, tape in zip(layers, tapes, strict=True):
                if isinstance(tape, UnreplayableError):
                    levels.append(Replay.NONE)
                    reasons.append(str(tape))
                    continue
                level = verify(tape, images, lambda some, off, one=layer: run_switched_off(runner, one, some, off))
                levels.append(level)
                if level is Replay.NONE:
                    reasons.append("a replay gives other outputs")
    except UnitRoleError as error:
        return Row(name, 0, 0, 0, 0, time.monotonic() - begun, str(error))
    exact = sum(level is not Replay.NONE for level in levels)
    return Row(name, len(every), len(automatic), count, exact, time.monotonic() - begun, "; ".join({*reasons}))


def page(rows: list[Row], left_out: list[str]) -> str:
    """The page, in Markdown."""
    tried, exact = sum(row.tried for row in rows), sum(row.exact for row in rows)
    analysed = [row for row in rows if row.layers]
    versions = [module.__version__.partition("+")[0] for module in (torch, torchvision)]
    made = (
        f"Made by `python benchmarks/compatibility.py` with torch {versions[0]} and torchvision {versions[1]}: random "
        f"weights, images of {SIZE} pixels or the least that a network takes."
    )
    summary = (
        f"{len(analysed)} of {len(rows)} classifiers of torchvision are analysed; {exact} of {tried} layers tried are "
        "replayed exactly, and for the others the whole network runs, with the same result. *Layers* can be named in "
        '`layers=`; *auto* are those that `layers="auto"` takes; *replayed* are of those tried.'
    )
    lines = ["# Networks that are analysed", "", made, "", summary, ""]
    lines += [
        "| Network | Layers | Auto | Replayed | Seconds | Why not |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        *(
            f"| {row.name} | {row.layers} | {row.automatic} | {row.exact} of {row.tried} | {row.seconds:.1f} "
            f"| {row.reason.replace('|', '/')} |"
            for row in rows
        ),
    ]
    if left_out:
        lines += ["", f"Not tried, for their size: {', '.join(left_out)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Look at the networks that are named, or at all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names of torchvision's classifiers; all when left out")
    chosen = parser.parse_args().networks
    sizes = {name: parameters(name) for name in chosen or networks()}
    rows: list[Row] = []
    for name in sorted(sizes, key=lambda name: sizes[name]):
        if sizes[name] <= LARGEST:
            rows.append(look_at(name))
            print(rows[-1], flush=True)
        text = page(sorted(rows), sorted({*sizes} - {row.name for row in rows}))
        if not chosen:
            PAGE.write_text(text, encoding="utf-8")
    if chosen:
        print(text)


if __name__ == "__main__":
    main()
