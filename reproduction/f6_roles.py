"""Finding 6: the four roles of units while a network first generalises and then overfits.

A small training set without augmentation and many epochs, with true labels and with 40 % random ones, where the test
loss rises again; the monitor assigns roles every few epochs. The paper: units that help only on training images become
more as the network overfits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import common

from lightning_unitrole import UnitRole
from lightning_unitrole.reports.vocabulary import ROLE_OF

RANDOM_LABELS = (0.0, 0.4)
ROLES = (UnitRole.BOTH, UnitRole.TRAIN_ONLY, UnitRole.VAL_ONLY, UnitRole.NEITHER)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the monitor and follow the shares of the roles."""

    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--every-n-epochs", type=int, default=5)

    options = common.parse(
        argv,
        __doc__,
        cost="6 minutes on one core, 3 seeds.",
        full={"width": 4.0, "train_per_class": 250, "epochs": 80, "images_per_class": 100, "ablation_points": 32},
        options=own,
        train_per_class=50,
        images_per_class=20,
        ablation_points=8,
        epochs=40,
    )
    images = common.load_images(options)
    rows = []
    for share in common.progress(RANDOM_LABELS, "roles"):
        for seed in range(options.seeds):
            recipe = common.main_recipe(
                options,
                seed,
                augment=False,
                weight_decay=0.0,
                learning_rate=0.02,
                random_labels=share,
                layers=("*conv5*", "*conv7*"),
                every_n_epochs=min(options.every_n_epochs, options.epochs),
                ablation_points=options.ablation_points,
            )
            run = common.train(recipe, images, options)
            rows += [{"seed": seed, "random_labels": share} | row for row in follow(run)]
    common.write_csv(options.out / "f6_roles.csv", rows)
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    summary = []
    for share in RANDOM_LABELS:
        some = [row for row in rows if row["random_labels"] == share]
        for layer in layers:
            summary += [[f"{share:.0%}", layer, *cells] for cells in movements(some, layer, options.seeds)]
        plot(some, layers, options.out / f"f6_roles_{share:.0%}.png".replace("%", ""))
    head = ["role", "share at least test loss", "share at the end", "rank correlation with test - train loss"]
    common.print_table(["random labels", "layer", *head], summary)


def follow(run: common.Run) -> list[dict]:
    """One row for each report of the monitor and each layer."""
    return [
        {"layer": name.removeprefix("net.")}
        | run.history[report.epoch]
        | {role.name.lower(): layer.role_shares[role] for role in ROLES}
        | {
            "entropy_train": common.finite_mean(layer.train.entropy),
            "entropy_test": common.finite_mean(layer.val.entropy),
            "ranking_gap": layer.ranking_gap,
            "random_gap": layer.val.random_gap,
        }
        for report in run.reports
        for name, layer in report.layers.items()
    ]


def movements(rows: Sequence[dict], layer: str, seeds: int) -> list[list[str]]:
    """For each role: its share where the test loss is least, at the end, and its correlation with the gap in loss."""
    table = []
    for role in ROLES:
        early, late, with_gap = [], [], []
        for seed in range(seeds):
            here = {"layer": layer, "seed": seed}
            shares = common.select(rows, role.name.lower(), **here)
            losses = common.select(rows, "test_loss", **here)
            gap = [a - b for a, b in zip(losses, common.select(rows, "train_loss", **here), strict=True)]
            early.append(shares[losses.index(min(losses))])
            late.append(shares[-1])
            with_gap.append(common.rank_correlation(shares, gap))
        cells = [common.spread(early, ".2f"), common.spread(late, ".2f"), common.spread(with_gap, "+.2f")]
        table.append([ROLE_OF[role].label, *cells])
    return table


def plot(rows: Sequence[dict], layers: Sequence[str], path: Path) -> None:
    """The shares of each layer over epochs, and the losses."""
    drawn, axes = common.figure(len(layers) + 1, width=3.6)
    epochs = sorted({row["epoch"] for row in rows})

    def mean(column: str, layer: str) -> list[float]:
        values = [common.select(rows, column, layer=layer, epoch=epoch) for epoch in epochs]
        return [sum(v) / len(v) for v in values]

    for column, color in (("train_loss", "#E69F00"), ("test_loss", "#0072B2")):
        axes[0].plot(epochs, mean(column, layers[0]), color=color, label=column.replace("_", " "))
    axes[0].legend(fontsize=8, frameon=False)
    for axis, layer in zip(axes[1:], layers, strict=True):
        shares = [mean(role.name.lower(), layer) for role in ROLES]
        colors = [ROLE_OF[role].matplotlib for role in ROLES]
        axis.stackplot(epochs, shares, colors=colors, labels=[ROLE_OF[role].label for role in ROLES])
        axis.set_title(layer, fontsize=10)
        axis.set_ylim(0, 1)
    axes[1].legend(fontsize=7, loc="lower left")
    for axis in axes:
        axis.set_xlabel("epoch")
    common.save_plot(drawn, path)


if __name__ == "__main__":
    main()
