"""Finding 4: feature entropy separates trained units from units with random weights.

For each layer of a VGG and of a network with five layers of 14x14, trained and with random weights (batch normalisation
set to the statistics of the data): the area under the ROC curve of each measure, over (class, unit) pairs. Feature
entropy should be *lower* in trained units; 0.5 means that it cannot tell, below 0.5 that it tells the wrong way round.
Other measures are given with the sign that the literature calls "more useful": larger activation, fewer zeros, higher
selectivity. A map without a birth point counts as the least effective. A second random network says how far 0.5 may
wander. Entropy estimated from few births is too low, and trained units may have fewer births: so it is given with a
correction too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import common
from torch import Tensor, nn

from lightning_unitrole import analyze

PLANS = {"vgg": common.VGG, "flat": common.FLAT}
OF_REPORT = ("entropy", "ineffectiveness", "selective_rate")
CRITERIA = {"corrected_entropy": common.corrected_entropy} | {
    k: k for k in ("mean_activation", "apoz", "class_selectivity")
}
MEASURES = (*OF_REPORT, *CRITERIA)


def measures(net: nn.Module, run: common.Run, images_per_class: int) -> dict[str, dict[str, Tensor]]:
    """For each layer, each measure of its (class, unit) pairs; smaller is more useful."""
    found: dict[str, dict[str, Tensor]] = {}
    settings = {"layers": "all", "images_per_class": images_per_class, "ablation_points": 0}
    for name, criterion in CRITERIA.items():
        report = analyze(net, run.train, run.test, criterion=criterion, **settings)
        for layer, values in report.layers.items():
            kept = found.setdefault(layer, {key: getattr(values.val, key) for key in OF_REPORT})
            kept[name] = -values.val.score
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Compare trained and random networks layer by layer."""
    cost = "11 minutes on one core, 3 seeds; 2 minutes after finding 1, which trains the same networks."
    options = common.parse(argv, __doc__, cost=cost, full={"width": 4.0, "train_per_class": 5000, "epochs": 60})
    images = common.load_images(options)
    rows = []
    for seed in common.progress(range(options.seeds), "separation"):
        for network, plan in PLANS.items():
            recipe = common.main_recipe(options, seed, plan=common.widened(plan, options.width))
            rows += [{"seed": seed, "network": network} | row for row in separate(recipe, images, options)]
    common.write_csv(options.out / "f4_separation.csv", rows)
    layers = list(dict.fromkeys((row["network"], row["layer"]) for row in rows))

    def column(network: str, layer: str, measure: str, value: str = "auc") -> list[float]:
        return common.select(rows, value, network=network, layer=layer, measure=measure)

    drawn, axes = common.figure(len(PLANS))
    for axis, network in zip(axes, PLANS, strict=True):
        names = [layer for of, layer in layers if of == network]
        for name in MEASURES:
            values = [column(network, layer, name) for layer in names]
            thick = 2.5 if name == "entropy" else 1.2
            axis.plot(names, [sum(v) / len(v) for v in values], "o-", label=name, linewidth=thick, markersize=4)
        axis.axhline(0.5, color="#999999", linestyle=":")
        axis.set_ylim(0, 1)
        axis.set_title(network, fontsize=10)
        axis.tick_params(axis="x", labelrotation=40, labelsize=7)
    axes[0].set_ylabel("AUC, trained against random")
    axes[1].legend(fontsize=6, frameon=False, ncols=2, loc="lower left")
    common.save_plot(drawn, options.out / "f4_separation.png")
    summary = []
    for network, layer in layers:
        cells = [column(network, layer, name) for name in MEASURES]
        cells.append(column(network, layer, "entropy", "auc_random_control"))
        summary.append([network, layer, *(common.spread(values, ".2f") for values in cells)])
    common.print_table(["network", "layer", *MEASURES, "entropy, random control"], summary)


def separate(recipe: common.Recipe, images: common.Images, options: argparse.Namespace) -> list[dict]:
    """One row for each layer and measure of one network."""
    run = common.train(recipe, images, options)
    drawn = [replace(recipe, seed=recipe.seed + shift) for shift in (0, 500)]
    others = [common.random_network(changed, images, run.train) for changed in drawn]
    trained, random, control = (measures(net, run, options.images_per_class) for net in (run.net, *others))
    rows = []
    for layer, found in trained.items():
        for name in MEASURES:
            on, off, second = (values[name].flatten() for values in (found, random[layer], control[layer]))
            row = {"layer": layer.removeprefix("net."), "measure": name, "auc": common.auc(on, off)}
            row |= {"auc_random_control": common.auc(second, off)}
            row |= {"trained_mean": common.finite_mean(on), "random_mean": common.finite_mean(off)}
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()
