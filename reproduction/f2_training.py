"""Finding 2: feature entropy falls as training goes on, together with the loss.

The monitor runs in every epoch (without ablation), in a VGG and in a network with five layers of 14x14. For each layer:
its mean entropy over epochs, its rank correlation with the test loss of the same epochs, and the change from random
weights to the first epoch and from the first epoch to the last.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import common

from lightning_unitrole import analyze

PLANS = {"vgg": common.VGG, "flat": common.FLAT}


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the monitor and follow the entropy of every layer."""
    cost = "11 minutes on one core, 3 seeds; under 1 minute after finding 1, which trains the same networks."
    options = common.parse(argv, __doc__, cost=cost, full={"width": 4.0, "train_per_class": 5000, "epochs": 60})
    images = common.load_images(options)
    rows = []
    for seed in common.progress(range(options.seeds), "training"):
        for network, plan in PLANS.items():
            recipe = common.main_recipe(options, seed, plan=common.widened(plan, options.width))
            run = common.train(recipe, images, options)
            rows += [{"seed": seed, "network": network} | row for row in follow(recipe, run, images, options)]
    common.write_csv(options.out / "f2_training.csv", rows)
    summary = []
    for network in PLANS:
        for layer in dict.fromkeys(common.select(rows, "layer", network=network)):
            firsts, changes, correlations = [], [], []
            for seed in range(options.seeds):
                here = {"network": network, "layer": layer, "seed": seed}
                entropy = common.select(rows, "entropy_test", **here)
                firsts.append(entropy[1] - entropy[0])
                changes.append(entropy[-1] - entropy[1])
                correlations.append(common.rank_correlation(entropy[1:], common.select(rows, "test_loss", **here)[1:]))
            summary.append([network, layer, *(common.spread(values) for values in (firsts, changes, correlations))])
    plot(rows, options)
    head = ["entropy, epoch 1 - random", "last epoch - epoch 1", "rank correlation with test loss"]
    common.print_table(["network", "layer", *head], summary)


def follow(recipe: common.Recipe, run: common.Run, images: common.Images, options: argparse.Namespace) -> list[dict]:
    """One row for each epoch and layer; epoch 0 is a network with random weights."""
    start = common.random_network(recipe, images, run.train)
    untrained = analyze(
        start, run.train, run.test, layers="all", images_per_class=options.images_per_class, ablation_points=0
    )
    test_loss, _ = common.evaluate(start, run.test)
    losses = [(float("nan"), test_loss), *((epoch["train_loss"], epoch["test_loss"]) for epoch in run.history)]
    return [
        {
            "epoch": epoch,
            "layer": name.removeprefix("net."),
            "entropy_train": common.finite_mean(layer.train.entropy),
            "entropy_test": common.finite_mean(layer.val.entropy),
            "selective_rate_test": common.finite_mean(layer.val.selective_rate),
            "train_loss": losses[epoch][0],
            "test_loss": losses[epoch][1],
        }
        for epoch, report in enumerate([untrained, *run.reports])
        for name, layer in report.layers.items()
    ]


def plot(rows: Sequence[dict], options: argparse.Namespace) -> None:
    """Entropy of every layer over epochs, a panel a network, and the losses of the first."""
    from matplotlib import colormaps

    drawn, axes = common.figure(len(PLANS) + 1, width=3.6)
    epochs = sorted({row["epoch"] for row in rows})

    def mean(column: str, **wanted: str) -> list[float]:
        values = [common.select(rows, column, epoch=epoch, **wanted) for epoch in epochs]
        return [sum(v) / len(v) for v in values]

    for axis, network in zip(axes, PLANS, strict=False):
        layers = list(dict.fromkeys(common.select(rows, "layer", network=network)))
        for index, layer in enumerate(layers):
            color = colormaps["viridis"](index / max(1, len(layers) - 1))
            axis.plot(epochs, mean("entropy_test", network=network, layer=layer), color=color, label=layer)
        axis.set_title(network, fontsize=10)
        axis.set_xlabel("epoch (0: random weights)")
        axis.legend(fontsize=6, frameon=False)
    axes[0].set_ylabel("feature entropy, test images (nats)")
    for column, color in (("train_loss", "#E69F00"), ("test_loss", "#0072B2")):
        axes[-1].plot(epochs, mean(column, network="vgg"), color=color, label=column.replace("_", " "))
    axes[-1].set_xlabel("epoch")
    axes[-1].set_ylabel("loss of vgg")
    axes[-1].legend(fontsize=8, frameon=False)
    common.save_plot(drawn, options.out / "f2_training.png")


if __name__ == "__main__":
    main()
