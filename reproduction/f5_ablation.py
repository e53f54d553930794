"""Finding 5: cumulative ablation, and where the order of feature entropy is right.

The paper: with the least effective units first, accuracy stays until a turning point and then falls sharply; with the
most effective first it falls at once. Measured for several networks, the last layer of each map size (and some inner
layers of ResNets), by the ranking gap: the area between the two accuracy curves; positive is right, negative upside
down. Every criterion of the package is measured beside it, and one that uses the selective rate alone.

The gap is measured with one order for all classes together, and as the paper does it: each class with its own order on
its own images.

Test images are split in two halves. Where a criterion is chosen by its measured gap, it is chosen on the first half and
judged on the second.

Explanations that are put to the test: residual sums, map size (the same weights on upscaled images, batch normalisation
set anew), the share of units without births, and how far the order agrees with that of mean activation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import common
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_unitrole import AblationCurve, analyze, compare_criteria, cumulative_ablation
from lightning_unitrole.ranking.criteria import UnitStatistics

CRITERIA = ("feature_entropy", "mean_activation", "apoz", "taylor", "filter_norm", "random")


def few_empty(statistics: UnitStatistics) -> Tensor:
    """The selective rate alone: units with a birth point on more images are more effective."""
    return -statistics.counts[..., 0] / statistics.counts.sum(-1)


@dataclass
class Case:
    """A network to ablate: its name, where, and how many images of each class."""

    name: str
    net: nn.Module
    train: TensorDataset
    layers: str | list[str] = "auto"
    images_per_class: int = 20


def trained_cases(images: common.Images, options: argparse.Namespace, seed: int) -> Iterator[Case]:
    """Small networks, trained here: the last layer of each map size, or of the two smallest."""
    recipe = common.main_recipe(options, seed, images_per_class=40)
    half = {"epochs": max(1, options.epochs // 2), "train_per_class": max(1, options.train_per_class // 2)}
    short = replace(recipe, every_n_epochs=0, **half)
    few = options.images_per_class
    changed = {
        "VGG, 28 pixels": recipe,
        "VGG, 32 pixels": replace(short, size=32),
        "VGG, 28 pixels, GELU": replace(short, activation="gelu"),
        "ResNet-8, 28 pixels": replace(short, plan="resnet8", width=max(4, round(16 * options.width))),
    }
    for name, wanted in changed.items():
        run = common.train(wanted, images, options)
        late = ["*layer[23].0.conv?"] if "ResNet" in name else ["*conv5*", "*conv7*"]
        yield Case(name, run.net, run.train, "auto" if wanted is recipe else late, few)
        if wanted is recipe:
            yield Case(f"{name}, {2 * few} images", run.net, run.train, late, 2 * few)
        if name == "VGG, 32 pixels":
            yield upscaled(Case(name, run.net, run.train, late, few), 56)


def published_cases(images: common.Images, options: argparse.Namespace, seed: int) -> Iterator[Case]:
    """Larger networks, of ResNets the last block, its inner convolution and its sum; the seed draws the images."""
    for path in options.weights or []:
        net, name = common.published(path)
        blocks = len(getattr(net, "layer3", ()))
        layers = [f"layer3.{blocks - 1}.conv1", f"layer3.{blocks - 1}.conv2"] if blocks else "auto"
        train = images.sample("train", 50, seed=seed)
        case = Case(f"{name}, 32 pixels", net, train, layers, options.images_per_class)
        yield case
        if blocks <= 3 or options.full:
            yield upscaled(case, 56)


def upscaled(case: Case, size: int) -> Case:
    """The same weights on larger images, batch normalisation set to their statistics."""
    case.net.resize.size = size
    common.recalibrate(case.net, TensorDataset(*case.train[:1000]))
    return replace(case, name=f"{case.name.split(',')[0]}, upscaled to {size}")


def halves(data: TensorDataset) -> tuple[TensorDataset, TensorDataset]:
    """Each class split in two."""
    images, labels = data.tensors
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        first[(labels == label).nonzero().flatten()[::2]] = True
    return TensorDataset(images[first], labels[first]), TensorDataset(images[~first], labels[~first])


def kept(curve: AblationCurve) -> float:
    """Share of units that can go before accuracy is more than two points below its start."""
    low = (curve.accuracy < curve.accuracy[0] - 0.02).nonzero().flatten()
    last = int(low[0]) - 1 if len(low) else len(curve.ablated) - 1
    return float(curve.ablated[last] / curve.ablated[-1])


def fall(curve: AblationCurve, share: float = 0.1) -> float:
    """Accuracy lost after a share of the units, between the points of the curve."""
    ablated = (curve.ablated / curve.ablated[-1]).numpy()
    return float(curve.accuracy[0] - np.interp(share, ablated, curve.accuracy.numpy()))


def class_gap(case: Case, layer: str, order: Tensor, half: TensorDataset, points: int) -> float:
    """The paper's own protocol: each class with its own order, on its own images; mean over the classes."""
    images, labels = half.tensors
    gaps = []
    for label in range(len(order)):
        here = labels == label
        data = [(images[here].to(common.device()), labels[here].to(common.device()))]
        curves = [
            cumulative_ablation(case.net, layer, units.to(common.device()), data, points=points)
            for units in (order[label].flip(0), order[label])
        ]
        gaps.append(curves[0].area - curves[1].area)
    return float(np.mean(gaps))


def measure(case: Case, halves: Sequence[TensorDataset], options: argparse.Namespace) -> list[dict]:
    """One row for each half, layer and criterion."""
    settings = {"layers": case.layers, "images_per_class": case.images_per_class}
    reports = {
        name: analyze(case.net, *halves, criterion=name, ablation_points=0, **settings)
        for name in ("feature_entropy", "mean_activation")
    }
    rows = []
    for number, half in enumerate(halves, start=1):
        compared = compare_criteria(
            case.net, half, criteria=[*CRITERIA, few_empty], ablation_points=options.ablation_points, **settings
        )
        for name, layer in reports["feature_entropy"].layers.items():
            entropy, activation = ((r.layers[name].train, r.layers[name].val)[number - 1] for r in reports.values())
            shared = {
                "half": number,
                "layer": name,
                "map_size": layer.map_size[0],
                "units": layer.num_units,
                "births": 1 - common.finite_mean(entropy.selective_rate),
                "degenerate": float(entropy.score.isnan().double().mean()),
                "agreement": common.rank_correlation(*(s.overall_order.argsort() for s in (entropy, activation))),
            }
            for criterion, curves in compared.layers[name].items():
                least, most = curves.least_first, curves.most_first
                order = {"feature_entropy": entropy.order, "mean_activation": activation.order}.get(criterion)
                wanted = order is not None and number == 2 and not case.name.endswith("images")
                rows.append(
                    shared
                    | {
                        "criterion": criterion,
                        "gap": curves.ranking_gap,
                        "class_gap": class_gap(case, name, order, half, 5) if wanted else float("nan"),
                        "accuracy": float(least.accuracy[0]),
                        "kept_least_first": kept(least),
                        "kept_most_first": kept(most),
                        "fall_least_first": fall(least),
                        "fall_most_first": fall(most),
                    }
                )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Ablate all cases, look for what explains the gap, and try the remedies."""

    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--weights", type=Path, nargs="*", help="published CIFAR ResNets (option A), each one file")

    options = common.parse(
        argv,
        __doc__,
        cost="20 minutes on one core, 3 seeds, of which 4 train networks that finding 1 shares.",
        full={"width": 4.0, "train_per_class": 5000, "epochs": 60, "images_per_class": 100, "ablation_points": 32},
        options=own,
        images_per_class=20,
        ablation_points=8,
    )
    images = common.load_images(options)
    rows = []
    for seed in common.progress(range(options.seeds), "ablation"):
        both = halves(images.sample("test", 4 * options.images_per_class, seed=100 + seed))
        for cases in (trained_cases, published_cases):
            for case in cases(images, options, seed):
                rows += [{"seed": seed, "case": case.name} | row for row in measure(case, both, options)]
    common.write_csv(options.out / "f5_ablation.csv", rows)
    report(rows, options)


def report(rows: Sequence[dict], options: argparse.Namespace) -> None:
    """Tables and plots."""
    second = [row for row in rows if row["half"] == 2]
    keys = list(dict.fromkeys((row["case"], row["layer"], row["map_size"]) for row in rows))
    names = list(dict.fromkeys(row["criterion"] for row in rows))

    def gaps(criterion: str, case: str, layer: str) -> list[float]:
        return common.select(second, "gap", criterion=criterion, case=case, layer=layer)

    head = ["case", "layer", "maps"]
    common.print_table(
        [*head, *names],
        [[case, at, size, *(common.spread(gaps(name, case, at)) for name in names)] for case, at, size in keys],
    )
    columns = (
        "gap",
        "class_gap",
        "accuracy",
        "births",
        "degenerate",
        "agreement",
        "kept_least_first",
        "kept_most_first",
    )
    columns += ("fall_least_first", "fall_most_first")
    entropy = [row for row in second if row["criterion"] == "feature_entropy"]
    common.print_table(
        [*head, *columns],
        [
            [case, layer, size]
            + [common.spread(common.select(entropy, column, case=case, layer=layer), ".2f") for column in columns]
            for case, layer, size in keys
        ],
    )
    activation = [row for row in second if row["criterion"] == "mean_activation"]
    for name, some in (("feature entropy", entropy), ("mean activation", activation)):
        means = [float(np.nanmean(common.select(some, "class_gap", seed=seed))) for seed in range(options.seeds)]
        print(f"each class with its own order, mean gap over layers, {name}: {common.spread(means)}")
    for gap in ("gap", "class_gap"):
        for column in ("map_size", "births", "degenerate", "agreement"):
            known = [row for row in entropy if np.isfinite(row[gap])]
            pairs = ((common.select(known, key, seed=seed) for key in (column, gap)) for seed in range(options.seeds))
            each = [common.rank_correlation(*pair) for pair in pairs]
            print(f"over layers, rank correlation of the entropy's {gap} with {column}: {common.spread(each)}")
    remedies(rows, keys, names, options)
    plot(entropy, second, keys, names, options)


def remedies(rows: Sequence[dict], keys: Sequence[tuple], names: Sequence[str], options: argparse.Namespace) -> None:
    """Mean gap on the second half: always one criterion, or the one that was best on the first half."""
    result: dict[str, list[float]] = {name: [] for name in names} | {"chosen on the first half": []}
    for seed in range(options.seeds):
        for name in names:
            result[name].append(float(np.mean(common.select(rows, "gap", seed=seed, half=2, criterion=name))))
        chosen = []
        for case, layer, _ in keys:
            here = {"seed": seed, "case": case, "layer": layer}
            best = max(names, key=lambda n, here=here: common.select(rows, "gap", half=1, criterion=n, **here)[0])
            chosen += common.select(rows, "gap", half=2, criterion=best, **here)
        result["chosen on the first half"].append(float(np.mean(chosen)))
    ranked = sorted(result.items(), key=lambda item: -np.mean(item[1]))
    common.print_table(
        ["criterion", "mean ranking gap over layers"], [[name, common.spread(values)] for name, values in ranked]
    )


def plot(
    entropy: Sequence[dict],
    second: Sequence[dict],
    keys: Sequence[tuple],
    names: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Gaps of all criteria, and the entropy's gap class by class against its agreement with mean activation."""
    table = [
        [np.mean(common.select(second, "gap", criterion=name, case=case, layer=layer)) for name in names]
        for case, layer, _ in keys
    ]
    drawn, (axis,) = common.figure(1, width=7.5, height=1 + 0.22 * len(keys))
    bound = float(np.abs(table).max())
    axis.imshow(table, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    labels = [f"{case}: {layer.removeprefix('net.')} ({size}x{size})" for case, layer, size in keys]
    axis.set_yticks(range(len(keys)), labels, fontsize=7)
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=25, ha="right")
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            axis.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=6)
    common.save_plot(drawn, options.out / "f5_gaps.png")
    drawn, axes = common.figure(2)
    for axis, column in zip(axes, ("agreement", "map_size"), strict=True):
        for family, color in (("VGG", "#0072B2"), ("ResNet", "#D55E00")):
            x, y = ([row[key] for row in entropy if row["case"].startswith(family)] for key in (column, "class_gap"))
            axis.plot(x, y, "o", color=color, label=family, alpha=0.6)
        axis.axhline(0, color="#999999", linestyle=":")
    axes[0].set_xlabel("rank correlation with mean activation")
    axes[0].set_ylabel("gap of feature entropy, class by class")
    axes[1].set_xlabel("side of the maps")
    axes[1].legend(fontsize=8, frameon=False)
    common.save_plot(drawn, options.out / "f5_explained.png")


if __name__ == "__main__":
    main()
