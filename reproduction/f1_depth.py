"""Finding 1: feature entropy falls with depth in trained networks.

Smaller maps have a lower entropy by themselves, so layers are compared at one map size: in a VGG with three map sizes,
and in a "flat" network with five layers of 14x14. The same networks with random weights (batch normalisation set to
the statistics of the data) say how much of the fall is there without any training. Entropy estimated from few births
is too low, and deep layers may have fewer: so it is given with the correction of Miller and Madow too.
"""

from __future__ import annotations

from collections.abc import Sequence

import common

from lightning_unitrole import analyze

PLANS = {"vgg": common.VGG, "flat": common.FLAT}


def main(argv: Sequence[str] | None = None) -> None:
    """Train both networks and compare the entropy of their layers."""
    cost = "11 minutes on one core, 3 seeds (training, which findings 2 to 5 share)."
    options = common.parse(argv, __doc__, cost=cost, full={"width": 4.0, "train_per_class": 5000, "epochs": 60})
    images = common.load_images(options)
    rows = []
    for seed in common.progress(range(options.seeds), "depth"):
        for name, plan in PLANS.items():
            recipe = common.main_recipe(options, seed, plan=common.widened(plan, options.width))
            run = common.train(recipe, images, options)
            nets = {"trained": run.net, "random": common.random_network(recipe, images, run.train)}
            for weights, net in nets.items():
                report = analyze(
                    net,
                    run.train,
                    run.test,
                    layers="all",
                    images_per_class=options.images_per_class,
                    criterion=common.corrected_entropy,
                    ablation_points=0,
                )
                rows += [
                    {
                        "seed": seed,
                        "network": name,
                        "weights": weights,
                        "layer": number,
                        "map_size": layer.map_size[0],
                        "entropy": common.finite_mean(layer.val.entropy),
                        "corrected_entropy": -common.finite_mean(layer.val.score),
                        "selective_rate": common.finite_mean(layer.val.selective_rate),
                        "ineffectiveness": common.finite_mean(layer.val.ineffectiveness),
                        "test_accuracy": run.history[-1]["test_accuracy"] if weights == "trained" else float("nan"),
                    }
                    for number, layer in enumerate(report.layers.values(), start=1)
                ]
    common.write_csv(options.out / "f1_depth.csv", rows)
    plot(rows, options)
    summary = []
    for name in PLANS:
        for weights in ("trained", "random"):
            for size in sorted(set(common.select(rows, "map_size", network=name)), reverse=True):
                cells = []
                for column in ("entropy", "corrected_entropy"):
                    wanted = {"network": name, "weights": weights, "map_size": size}
                    cells.append([fall(rows, column, seed=seed, **wanted) for seed in range(options.seeds)])
                summary.append([name, weights, f"{size}x{size}", *map(common.spread, cells)])
    print("last layer of a map size minus the first, nats:")
    common.print_table(["network", "weights", "maps", "entropy", "corrected entropy"], summary)


def fall(rows: Sequence[dict], column: str, **wanted: object) -> float:
    """Entropy of the last layer of a map size minus that of the first; NaN for a single layer."""
    values = common.select(rows, column, **wanted)
    return values[-1] - values[0] if len(values) > 1 else float("nan")


def plot(rows: Sequence[dict], options: object) -> None:
    """Entropy over layers, a panel a network; gaps in a line are changes of the map size."""
    drawn, axes = common.figure(len(PLANS))
    for axis, name in zip(axes, PLANS, strict=True):
        for weights, color in (("trained", "#0072B2"), ("random", "#999999")):
            for size in sorted(set(common.select(rows, "map_size", network=name)), reverse=True):
                wanted = {"network": name, "weights": weights, "map_size": size}
                layers = sorted(set(common.select(rows, "layer", **wanted)))
                values = [common.select(rows, "entropy", layer=layer, **wanted) for layer in layers]
                means = [sum(v) / len(v) for v in values]
                low, high = [min(v) for v in values], [max(v) for v in values]
                first = size == max(common.select(rows, "map_size", network=name))
                axis.plot(layers, means, "o-", color=color, label=f"{weights} weights" if first else None)
                axis.fill_between(layers, low, high, color=color, alpha=0.2)
                if weights == "trained":
                    axis.annotate(f"{size}x{size}", (layers[0], 0.02), xycoords=("data", "axes fraction"), fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("layer")
    axes[0].set_ylabel("feature entropy (nats)")
    axes[0].legend(fontsize=8, frameon=False)
    common.save_plot(drawn, options.out / "f1_depth.png")


if __name__ == "__main__":
    main()
