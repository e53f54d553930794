"""Finding 7: does what the units do on training images tell how well a network generalises?

Networks are trained with 0, 20, 50 and 100 % random labels, plainly and with dropout, augmentation or weight decay.
For each measure: Spearman's rank correlation with the generalisation gap (training accuracy minus test accuracy) over
the 16 networks of a seed; within the four networks of one share of random labels; and within those of one regulariser.
Training accuracy and training loss are the trivial baselines. All measures are of training images alone, except for
the shares of the roles and of what differs, which need test images by their definition.

``--weights FILE`` begins with trained weights instead, which makes larger networks affordable: those of ``vgg16.py``,
trained further on few images until they know their labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import common
import numpy as np
from torch.utils.data import TensorDataset

from lightning_unitrole import UnitRole, analyze

PLAN = "16,M,32,32,64"
SHARES = (0.0, 0.2, 0.5, 1.0)
REGULARISERS = {
    "plain": {"weight_decay": 0.0},
    "dropout": {"weight_decay": 0.0, "dropout": 0.5},
    "augmentation": {"weight_decay": 0.0, "augment": True},
    "weight decay": {"weight_decay": 1e-2},
}
BASELINES = ("train_accuracy", "train_loss")
FROM_TRAINING = ("entropy", "ineffectiveness", "selective_rate", "ranking_gap", "turning_point")
WITH_TEST = ("differing_share", *(f"role_{role.name.lower()}" for role in UnitRole))
MEASURES = (*BASELINES, *FROM_TRAINING, *WITH_TEST)


def describe(run: common.Run, test: TensorDataset, options: argparse.Namespace) -> dict[str, float]:
    """Everything that is said of one network, of its last layer."""
    report = analyze(
        run.net,
        run.train,
        test,
        layers=options.layers,
        images_per_class=options.images_per_class,
        ablation_points=options.ablation_points,
        roles="turning_point" if options.ablation_points else "contribution",
    )
    layer = list(report.layers.values())[-1]
    train = layer.train
    train_loss, train_accuracy = common.evaluate(run.net, run.train)
    test_accuracy = common.evaluate(run.net, test)[1]
    return {
        "gap": train_accuracy - test_accuracy,
        "test_accuracy": test_accuracy,
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "entropy": common.finite_mean(train.entropy),
        "ineffectiveness": common.finite_mean(train.ineffectiveness),
        "selective_rate": common.finite_mean(train.selective_rate),
        "ranking_gap": train.ranking_gap,
        "turning_point": train.curves["least_first"].turning_point / layer.num_units if train.curves else float("nan"),
        "differing_share": layer.differing_share,
        **{f"role_{role.name.lower()}": layer.role_shares.get(role, float("nan")) for role in UnitRole},
    }


def correlation(rows: Sequence[dict], measure: str, seed: int, within: str | None) -> float:
    """Rank correlation with the gap; within groups, the mean over the groups."""
    here = [row for row in rows if row["seed"] == seed]
    groups = [here] if within is None else [[r for r in here if r[within] == v] for v in {r[within] for r in here}]
    each = [common.rank_correlation((r[measure] for r in g), (r["gap"] for r in g)) for g in groups]
    known = [value for value in each if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def main(argv: Sequence[str] | None = None) -> None:
    """Train all networks and correlate."""

    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--weights", type=Path, help="begin with these instead of random ones")
        parser.add_argument("--layers", nargs="+", default="auto", help="the last of these is looked at")
        parser.add_argument("--learning-rate", type=float, default=0.05)

    options = common.parse(
        argv,
        __doc__,
        cost="15 minutes on one core, 3 seeds of 16 networks.",
        options=own,
        full={"width": 4.0, "train_per_class": 500, "images_per_class": 100, "ablation_points": 32, "epochs": 100},
        train_per_class=40,
        images_per_class=20,
        ablation_points=8,
        epochs=40,
    )
    images = common.load_images(options)
    test = images.sample("test", options.test_per_class, seed=0)
    rows = []
    wanted = [(s, share, name) for s in range(options.seeds) for share in SHARES for name in REGULARISERS]
    for seed, share, name in common.progress(wanted, "generalisation"):
        changes = {"augment": False, **REGULARISERS[name]}
        recipe = common.main_recipe(
            options,
            seed,
            test_per_class=min(10, options.test_per_class),
            plan=common.widened(PLAN, options.width),
            random_labels=share,
            batch_size=32,
            every_n_epochs=0,
            learning_rate=options.learning_rate,
            **changes,
        )
        run = common.train(recipe, images, options, options.weights)
        rows.append({"seed": seed, "random_labels": share, "regulariser": name} | describe(run, test, options))
    name = "f7_generalisation" if options.weights is None else f"f7_{options.weights.stem}"
    common.write_csv(options.out / f"{name}.csv", rows)
    groupings = {"all networks": None, "same labels": "random_labels", "same regulariser": "regulariser"}
    measures = [measure for measure in MEASURES if any(np.isfinite(row[measure]) for row in rows)]
    found = {
        (measure, title): [correlation(rows, measure, seed, within) for seed in range(options.seeds)]
        for measure in measures
        for title, within in groupings.items()
    }
    common.print_table(
        ["measure", *groupings],
        [[measure, *(common.spread(found[measure, title], "+.2f") for title in groupings)] for measure in measures],
    )
    columns = ("train_accuracy", "test_accuracy", "entropy", "selective_rate", "role_train_only")
    common.print_table(
        ["random labels", "regulariser", *columns],
        [
            [share, name]
            + [common.spread(common.select(rows, c, random_labels=share, regulariser=name), ".2f") for c in columns]
            for share in SHARES
            for name in REGULARISERS
        ],
    )
    plot(rows, measures, found, options.out / f"{name}.png")


def plot(rows: Sequence[dict], measures: Sequence[str], found: dict, path: Path) -> None:
    """Correlations of all measures, and entropy against the gap."""
    drawn, (left, right) = common.figure(2)
    for offset, (title, color) in enumerate((("all networks", "#0072B2"), ("same labels", "#E69F00"))):
        values = np.nan_to_num([found[measure, title] for measure in measures])
        at = np.arange(len(measures)) + 0.35 * offset
        left.barh(at, values.mean(1), 0.35, xerr=values.std(1), color=color, label=title)
    left.set_yticks(range(len(measures)), measures, fontsize=8)
    left.invert_yaxis()
    left.set_xlim(-1.1, 1.1)
    left.set_xlabel("rank correlation with the gap")
    left.legend(fontsize=7, frameon=False)
    for share, color in zip(SHARES, ("#0072B2", "#56B4E9", "#E69F00", "#D55E00"), strict=False):
        gap, entropy = (common.select(rows, column, random_labels=share) for column in ("gap", "entropy"))
        right.plot(entropy, gap, "o", color=color, label=f"{share:.0%} random labels", markersize=4)
    right.set_xlabel("feature entropy on training images (nats)")
    right.set_ylabel("training accuracy - test accuracy")
    right.legend(fontsize=7, frameon=False)
    common.save_plot(drawn, path)


if __name__ == "__main__":
    main()
