"""Finding 3: feature entropy does not change when weights are rescaled between layers.

ReLU is positively homogeneous: multiplying the filter of a unit by a positive number and dividing what reads the unit
by the same number leaves the function of the network as it was. A measure of what a unit does should not change either.
Batch normalisation is folded into the convolutions of a trained VGG first. Factors are drawn for each unit: powers of
two, where no rounding occurs, and arbitrary numbers.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import common
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_unitrole import analyze
from lightning_unitrole.ranking.criteria import CRITERIA

MEASURES = [name for name in CRITERIA if name != "random"]


def folded(net: nn.Sequential) -> nn.Sequential:
    """A copy in which every batch normalisation has become part of the convolution before it."""
    net = copy.deepcopy(net)
    names = list(net._modules)
    for name, after in itertools.pairwise(names):
        if isinstance(net.get_submodule(after), nn.BatchNorm2d):
            setattr(net, name, fuse_conv_bn_eval(net.get_submodule(name), net.get_submodule(after)))
            setattr(net, after, nn.Identity())
    return net


@torch.no_grad()
def rescaled(net: nn.Sequential, *, powers_of_two: bool, seed: int) -> nn.Sequential:
    """A copy of a network without batch normalisation that computes the same with other weights."""
    net = copy.deepcopy(net)
    weighted = [module for module in net if isinstance(module, (nn.Conv2d, nn.Linear))]
    draw = torch.Generator().manual_seed(seed)
    for layer, reader in itertools.pairwise(weighted):
        exponent = torch.rand(len(layer.weight), generator=draw) * 6 - 3
        factor = (2 ** (exponent.round() if powers_of_two else exponent)).to(layer.weight)
        layer.weight.mul_(factor.view(-1, 1, 1, 1))
        layer.bias.mul_(factor)
        reader.weight.div_(factor.view(1, -1, *[1] * (reader.weight.ndim - 2)))
    return net


def scores(net: nn.Module, run: common.Run, images_per_class: int) -> dict[str, torch.Tensor]:
    """Scores of all units of all layers by every criterion, one after another."""
    found = {}
    for name in MEASURES:
        report = analyze(
            net, run.train, run.test, layers="all", images_per_class=images_per_class, criterion=name, ablation_points=0
        )
        found[name] = torch.cat([layer.val.score.mean(0) for layer in report.layers.values()])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Rescale trained networks and compare all criteria before and after."""
    cost = "7 minutes on one core if finding 1 has not been run (its networks are shared), else under 1 minute."
    options = common.parse(argv, __doc__, cost=cost, full={"width": 4.0, "train_per_class": 5000, "epochs": 60})
    images = common.load_images(options)
    rows = []
    for seed in common.progress(range(options.seeds), "rescaling"):
        run = common.train(common.main_recipe(options, seed), images, options)
        net = folded(run.net)
        before = scores(net, run, options.images_per_class)
        for kind in ("powers of two", "any factor"):
            other = rescaled(net, powers_of_two=kind == "powers of two", seed=seed)
            after = scores(other, run, options.images_per_class)
            for name in MEASURES:
                known = before[name].isfinite()
                change = ((after[name] - before[name]).abs() / before[name].abs().clamp(min=1e-12))[known]
                rows.append(
                    {
                        "seed": seed,
                        "factors": kind,
                        "measure": name,
                        "median_change": float(change.median()),
                        "largest_change": float(change.max()),
                        "rank_correlation": common.rank_correlation(before[name], after[name]),
                    }
                )
    common.write_csv(options.out / "f3_rescaling.csv", rows)
    drawn, axes = common.figure(2)
    for axis, kind in zip(axes, ("powers of two", "any factor"), strict=True):
        values = [common.select(rows, "rank_correlation", measure=name, factors=kind) for name in MEASURES]
        axis.barh(MEASURES, [sum(v) / len(v) for v in values], color="#0072B2")
        axis.set_xlabel("rank correlation of units\nbefore and after rescaling")
        axis.set_title(kind, fontsize=10)
        axis.set_xlim(0, 1.05)
    axes[1].set_yticklabels([])
    common.save_plot(drawn, options.out / "f3_rescaling.png")
    columns = {"median_change": ".2g", "largest_change": ".2g", "rank_correlation": ".4f"}
    summary = [
        [kind, name]
        + [common.spread(common.select(rows, key, measure=name, factors=kind), form) for key, form in columns.items()]
        for kind in ("powers of two", "any factor")
        for name in MEASURES
    ]
    common.print_table(["factors", "measure", *columns], summary)


if __name__ == "__main__":
    main()
