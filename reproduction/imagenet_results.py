"""What ``imagenet.py`` measured: files that grow with each run, tables, and a picture for each statement.

To print and draw what stands in a folder once more: ``python reproduction/imagenet_results.py --out FOLDER``.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

Rows = list[dict[str, Any]]
KEYS = {
    "cost": ("settings",),
    "entropy": ("layer", "side"),
    "rescaling": ("factors", "criterion"),
    "ablation": ("off", "order"),
    "roles": ("definition",),
    "removal": ("order",),
}
"""What tells the rows of a network and a draw apart, by part."""
TITLES = {
    "squeezenet1_0": "SqueezeNet 1.0",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "vgg16_bn": "VGG-16-BN, CIFAR-10",
}
BLUE, SKY, ORANGE, RED, GREY = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#888888"


class Table:
    """The rows of one part in a file, which keeps those of other networks, draws and ways to be off."""

    def __init__(self, part: str, folder: Path) -> None:
        self.part, self.folder, self.path = part, folder, folder / f"imagenet_{part}.csv"
        self.rows: Rows = read(self.path)

    def add(self, rows: Rows) -> None:
        """Put rows in the place of those that they measure again, and write the file."""

        def asked(row: dict[str, Any]) -> tuple[Any, ...]:
            return row["network"], row["draw"], row.get("off")

        if rows:
            again = {asked(row) for row in rows}
            kept = [row for row in self.rows if asked(row) not in again] + rows
            networks = list(dict.fromkeys(row["network"] for row in self.rows + rows))
            self.rows = sorted(kept, key=lambda row: (networks.index(row["network"]), row["draw"]))
            common.write_csv(self.path, self.rows)

    def report(self) -> None:
        """Print means and spreads over the draws, random orders as one; draw the picture."""
        if not self.rows:
            return
        rows = random_as_one(self.rows)
        keys = ("network", *KEYS[self.part])
        values = [key for key in rows[0] if key not in (*keys, "draw", "layer")]
        table = []
        for place in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
            some = [row for row in rows if tuple(row[key] for key in keys) == place]
            table.append([*place, *(summary(some, value) for value in values)])
        common.print_table([*keys, *values], table)
        if self.part in PICTURES:
            networks = list(dict.fromkeys(row["network"] for row in rows))
            drawn, axes = common.figure(len(networks), width=4.6, height=3.0)
            for axis, name in zip(axes, networks, strict=True):
                PICTURES[self.part](axis, [row for row in rows if row["network"] == name])
                axis.set_title(TITLES.get(name, name), fontsize=10)
            axes[0].legend(fontsize=7, frameon=False)
            common.save_plot(drawn, self.path.with_suffix(".png"))


def read(path: Path) -> Rows:
    """The rows of a file of results, numbers as numbers; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> str | int | float:
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if text.isdigit() else number


def random_as_one(rows: Rows) -> Rows:
    """The rows with all random orders called so."""
    return [{**row, "order": "random"} if str(row.get("order", "")).startswith("random") else dict(row) for row in rows]


def summary(rows: Rows, value: str) -> str:
    """Mean and spread over the draws; where a draw has several rows, of their means, with the least and the largest."""
    draws = [common.select(rows, value, draw=draw) for draw in dict.fromkeys(row["draw"] for row in rows)]
    text = common.spread([float(np.mean(values)) for values in draws], ".3f")
    if len(rows) == len(draws):
        return text
    every = [number for values in draws for number in values]
    return f"{text} ({min(every):.2f} to {max(every):.2f}, {len(every)} orders)"


def entropy_picture(axis: Any, rows: Rows) -> None:
    """Entropy of trained and of shuffled weights by depth, a dot for each draw."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for column, color, label in (("trained", BLUE, "trained"), ("shuffled", GREY, "weights shuffled")):
        at = [layers.index(row["layer"]) for row in rows]
        axis.plot(at, [row[f"entropy_{column}"] for row in rows], "o", color=color, alpha=0.6, label=label)
    sides = {row["layer"]: row["side"] for row in rows}
    axis.set_xticks(range(len(layers)), [f"{sides[layer]}x{sides[layer]}" for layer in layers], fontsize=7)
    axis.set_xlabel("maps of the layer, by depth")
    axis.set_ylabel("feature entropy (nats)")


def ablation_picture(axis: Any, rows: Rows) -> None:
    """Area under the curve of accuracy by order, a dot for each draw, with random orders beside them."""
    orders = list(dict.fromkeys(row["order"] for row in rows))
    for off, color in (("zero", BLUE), ("mean", RED)):
        some = [row for row in rows if row["off"] == off]
        heights = [orders.index(row["order"]) + (0.15 if off == "mean" else -0.15) for row in some]
        axis.plot([row["area"] for row in some], heights, "o", color=color, alpha=0.6, label=f"off: {off}")
    axis.set_yticks(range(len(orders)), [order.replace("_", " ") for order in orders], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("area under the class's own accuracy")


def roles_picture(axis: Any, rows: Rows) -> None:
    """One-sided roles of training against validation images, and of two samples of one side, a dot for each draw."""
    definitions = list(dict.fromkeys(row["definition"] for row in rows))
    sides = (
        ("training against validation", BLUE, lambda row: row["train_only"] + row["val_only"]),
        ("training against training", GREY, lambda row: row["null_train_one_sided"]),
        ("validation against validation", ORANGE, lambda row: row["null_test_one_sided"]),
    )
    for place, (label, color, share) in enumerate(sides):
        heights = [definitions.index(row["definition"]) + 0.2 * (place - 1) for row in rows]
        axis.plot([100 * share(row) for row in rows], heights, "o", color=color, alpha=0.6, label=label)
    axis.set_yticks(range(len(definitions)), [f"by {name}" for name in definitions], fontsize=7)
    axis.set_ylim(len(definitions) - 0.5, -0.5)
    axis.set_xlabel("one-sided roles, % of the (class, unit) pairs")


def removal_picture(axis: Any, rows: Rows) -> None:
    """Accuracy without the least effective units: random orders as a band, mean of the draws for the others."""
    off = (0, 30, 50, 70)
    curves: dict[str, list[np.ndarray]] = {}
    for row in rows:
        curves.setdefault(row["order"], []).append(np.array([100 * row[f"accuracy_without_{share}"] for share in off]))
    random = np.stack(curves["random"])
    axis.fill_between(off, random.min(0), random.max(0), color=GREY, alpha=0.3, linewidth=0, label="random orders")
    for name, color in (("feature_entropy", BLUE), ("mean_activation", SKY), ("size of contribution", RED)):
        if name in curves:
            axis.plot(off, np.mean(curves[name], 0), "o-", color=color, label=name.replace("_", " "), markersize=4)
    axis.set_xlabel("least effective units that are off, %")
    axis.set_ylabel("accuracy, %")


PICTURES = {
    "entropy": entropy_picture,
    "ablation": ablation_picture,
    "roles": roles_picture,
    "removal": removal_picture,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Print all tables and draw all pictures again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the CSV files")
    options = parser.parse_args(argv)
    for part in KEYS:
        Table(part, options.out).report()


if __name__ == "__main__":
    main()
