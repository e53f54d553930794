"""How far roles repeat on other images, for both definitions: by contribution and by turning point.

Each side, training and test images, is drawn twice, every image different: two complete analyses that should say the
same. Their agreement within a class is Cohen's kappa of "helps on test images", mean over the classes. The null holds
two samples of *one* side against each other as if they were training and validation images: every unit that is said to
help on one of them only, and every pair that is said to differ, is a false one. The last layer of each map size.

Networks: a small VGG, the same overfit on few images with 40 % random labels, a ResNet-8, and published CIFAR ResNets
where their weights are given, which have seen the training images.

Beside the table, three studies of contributions alone: by the number of nodes of the integral, by the number of images,
and by the smallest effect that counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_unitrole.ablation import AblationRequest
from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.ranking.criteria import rank, score_units
from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.effects import MIN_EFFECT, class_effects, roles_from_effects
from lightning_unitrole.reports.roles import UnitRole, assign_roles, effective_set
from lightning_unitrole.reports.significance import kappa, rank_correlation
from lightning_unitrole.reports.vocabulary import UNDECIDED

NETWORKS = ("vgg", "overfit", "resnet", "published")
PARTS = ("contribution", "turning_point", "removal", "steps", "images", "effect")
ORDERS = ("feature_entropy", "taylor", "random")
"""Orders in which units are switched off to find turning points; the random one is the same for both samples."""
EFFECTS = (0.0, 0.05, 0.1, 0.2)
SHOWN = {"contribution": "by contribution", "turning_point, feature_entropy": "by turning point"}

Pair = tuple[TensorDataset, TensorDataset]
RolesOf = Callable[[TensorDataset, TensorDataset], tuple[Tensor, Tensor]]
"""From training and validation images to roles ``[C, U]``, and to where the sides differ ``[C, U]``."""


# Networks and images


@dataclass(frozen=True)
class Case:
    """A network, the images that it was trained on, and its layers."""

    name: str
    net: nn.Module
    train: TensorDataset
    layers: tuple[str, ...]
    weights: str


def cases(images: common.Images, options: argparse.Namespace, seed: int) -> Iterator[Case]:
    """All networks; trained ones with this seed, published ones with images drawn by it."""
    recipe = common.main_recipe(options, seed, every_n_epochs=0)
    recipes = {
        "vgg": ("VGG-7", recipe),
        "overfit": (
            "VGG-7, overfit",
            replace(
                recipe,
                augment=False,
                weight_decay=0.0,
                learning_rate=0.02,
                random_labels=0.4,
                train_per_class=options.overfit_per_class,
                epochs=options.overfit_epochs,
            ),
        ),
        "resnet": ("ResNet-8", replace(recipe, plan="resnet8", width=max(4, round(16 * options.width)))),
    }
    for key in (key for key in options.networks if key in recipes):
        name, wanted = recipes[key]
        run = common.train(wanted, images, options)
        print(f"{name}, seed {seed}: training {common.evaluate(run.net, run.train)}, ", end="")
        print(f"test {common.evaluate(run.net, run.test)} (loss, accuracy)")
        yield case_of(name, run.net, run.train, options)
    for path in options.weights if "published" in options.networks else []:
        net, name = common.published(path)
        train = images.sample("train", 2 * options.images_per_class, seed=seed)
        yield case_of(name, net, train, options)


def case_of(name: str, net: nn.Module, train: TensorDataset, options: argparse.Namespace) -> Case:
    """A case with the layers that were asked for."""
    session = start(net, train, AnalysisOptions(layers=options.layers))
    weights = TensorDataset(torch.cat([value.detach().float().cpu().flatten() for value in net.state_dict().values()]))
    return Case(name, net, train, tuple(layer.name for layer in session.layers), common.checksum(weights))


def start(net: nn.Module, data: TensorDataset, settings: AnalysisOptions) -> AnalysisSession:
    """An analysis of a network."""
    return AnalysisSession(Runner(net), settings, [part[:2].to(common.device()) for part in data.tensors])


def two_pairs(case: Case, images: common.Images, per_class: int, seed: int) -> tuple[Pair, Pair]:
    """Training and test images, twice, every image different; of each class as many on every side."""
    sides = case.train, images.sample("test", 2 * per_class, seed=seed)
    orders = [torch.randperm(len(side), generator=torch.Generator().manual_seed(seed)) for side in sides]
    drawn = {
        label: [order[side.tensors[1][order] == label] for side, order in zip(sides, orders, strict=True)]
        for label in range(len(images.names))
    }
    numbers = {label: min(per_class, *(len(at) // 2 for at in found)) for label, found in drawn.items()}

    def half(side: int, first: int) -> TensorDataset:
        chosen = [drawn[label][side][first : 2 * number : 2] for label, number in numbers.items()]
        return TensorDataset(*sides[side][torch.cat(chosen)])

    return (half(0, 0), half(1, 0)), (half(0, 1), half(1, 1))


# Measurements of one sample of images, kept in the cache


@dataclass(frozen=True)
class Bench:
    """Measures one layer of a network."""

    case: Case
    layer: str
    options: argparse.Namespace

    def contributions(self, data: TensorDataset, *, steps: int, removal: bool = False) -> dict[str, Tensor]:
        """Contributions or removal effects, and how long they took."""

        def make() -> dict[str, Tensor]:
            settings = AnalysisOptions(layers=[self.layer], images_per_class=len(data), contribution_steps=steps)
            session = start(self.case.net, data, settings)
            sample = session.sample(session.probe(data, name="sample"))
            began = time.perf_counter()
            measured = session.observer.measure(sample, contributions=True, removal=removal)[self.layer]
            seconds = torch.tensor(time.perf_counter() - began)
            found = measured.removal if removal else measured.contributions
            assert found is not None
            return {
                **found.arrays(),
                "seconds": seconds,
                "entropy": score_units("feature_entropy", measured.statistics),
            }

        return self._cached(data, ["removal" if removal else "contribution", steps], make)

    def effective(self, data: TensorDataset, order: str) -> dict[str, Tensor]:
        """Effective sets ``[C, U]`` by turning points, the scores behind them, and how long they took."""

        def make() -> dict[str, Tensor]:
            points = self.options.ablation_points
            settings = AnalysisOptions(layers=[self.layer], images_per_class=len(data), ablation_points=points)
            session = start(self.case.net, data, settings)
            sample = session.sample(session.probe(data, name="sample"))
            began = time.perf_counter()
            ranking = rank(order, session.observer.measure(sample, [order])[self.layer].statistics)
            requests = {
                label: AblationRequest(units.flip(0), group=label)
                for label, units in enumerate(ranking.order)
                if int(sample.images[label])
            }
            with session.runner.undisturbed():
                curves = session.curves(session.layers[0]).measure(requests, sample)
            effective = torch.zeros(ranking.order.shape, dtype=torch.bool)
            for label, curve in curves.items():
                effective[label] = effective_set(ranking.order[label].cpu(), curve.turning_point)
            seconds = torch.tensor(time.perf_counter() - began)
            return {"effective": effective, "score": ranking.score.cpu(), "seconds": seconds}

        return self._cached(data, [order, self.options.ablation_points], make)

    def _cached(
        self, data: TensorDataset, what: Sequence[Any], make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        key = common.digest([self.case.weights, self.layer, common.checksum(data), *what])
        stored = self.options.cache / "reliability" / f"{key}.pt"
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            torch.save(make(), stored)
        return torch.load(stored, weights_only=True)


# How far roles repeat


def repeated(pairs: tuple[Pair, Pair], roles_of: RolesOf) -> dict[str, float]:
    """Agreement of two analyses, shares of the roles, and the same where there is nothing to find."""
    (train_a, val_a), (train_b, val_b) = pairs
    real = [roles_of(*pair) for pair in pairs]
    tested = ((real[0][0] != UNDECIDED) & (real[1][0] != UNDECIDED)).all(1)
    real = [(roles[tested], differs[tested]) for roles, differs in real]
    null = {"train": roles_of(train_a, train_b), "test": roles_of(val_a, val_b)}
    roles = torch.stack([one for one, _ in real])
    helps = (roles & UnitRole.VAL_ONLY) > 0
    found = {
        "agreement": mean(kappa(helps[0], helps[1])),
        "role_agreement": mean(kappa(roles[0], roles[1])),
        "helps": mean(helps),
        "train_only": mean(roles == UnitRole.TRAIN_ONLY),
        "val_only": mean(roles == UnitRole.VAL_ONLY),
        "differs": mean(torch.stack([differs for _, differs in real])),
    }
    for side, (of_side, differs) in null.items():
        known = of_side[(of_side != UNDECIDED).all(1)]
        found[f"null_{side}_train_only"] = mean(known == UnitRole.TRAIN_ONLY)
        found[f"null_{side}_val_only"] = mean(known == UnitRole.VAL_ONLY)
        found[f"null_{side}_one_sided"] = mean((known == UnitRole.TRAIN_ONLY) | (known == UnitRole.VAL_ONLY))
        found[f"null_{side}_differs"] = mean(differs)
    return found


def mean(values: Tensor) -> float:
    """Mean over what is known; NaN over nothing."""
    return float(values.double().nanmean()) if values.numel() else float("nan")


def by_contribution(
    bench: Bench, pairs: tuple[Pair, Pair], *, steps: int, removal: bool = False, least: float = MIN_EFFECT
) -> dict[str, float]:
    """One row: roles from contributions, or from removal effects."""
    measured = {id(data): bench.contributions(data, steps=steps, removal=removal) for pair in pairs for data in pair}
    found = {key: Contributions.from_arrays(arrays) for key, arrays in measured.items()}

    def roles_of(train: TensorDataset, val: TensorDataset) -> tuple[Tensor, Tensor]:
        effects = class_effects(found[id(train)], found[id(val)], least=least)
        return roles_from_effects(effects), effects.differs

    vals = [found[id(val)] for _, val in pairs]
    entropies = [measured[id(val)]["entropy"] for _, val in pairs]
    return {
        **repeated(pairs, roles_of),
        "rank_agreement": mean(rank_correlation(*(one.by_class().mean for one in vals))),
        "rank_agreement_entropy": mean(rank_correlation(*entropies)),
        "completeness_error": mean(torch.tensor([one.completeness_error for one in vals])),
        "images": float(vals[0].images.sum(0).double().mean()),
        "seconds": sum(float(one["seconds"]) for one in measured.values()) / 2,
    }


def by_turning_point(bench: Bench, pairs: tuple[Pair, Pair], order: str) -> dict[str, float]:
    """One row: the published roles with units ordered by a criterion."""
    measured = {id(data): bench.effective(data, order) for pair in pairs for data in pair}

    def roles_of(train: TensorDataset, val: TensorDataset) -> tuple[Tensor, Tensor]:
        effective = measured[id(train)]["effective"], measured[id(val)]["effective"]
        return assign_roles(*effective), effective[0] != effective[1]

    scores = [measured[id(val)]["score"] for _, val in pairs]
    return {
        **repeated(pairs, roles_of),
        "rank_agreement": mean(rank_correlation(*scores)),
        "images": float(torch.bincount(pairs[0][1].tensors[1]).double().mean()),
        "seconds": sum(float(one["seconds"]) for one in measured.values()) / 2,
    }


def same_images(bench: Bench, pairs: tuple[Pair, Pair], steps: int, most: int) -> float:
    """Agreement of "helps on validation images" with that from the most nodes, on the same images."""
    helps = []
    for number in (steps, most):
        sides = [Contributions.from_arrays(bench.contributions(data, steps=number)) for data in pairs[0]]
        helps.append(class_effects(*sides).val == 1)
    return mean(kappa(*helps))


# Tables


def main(argv: Sequence[str] | None = None) -> None:
    """Measure everything that is asked for and print the tables."""

    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--weights", type=Path, nargs="*", default=[], help="published CIFAR ResNets (option A)")
        parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=NETWORKS)
        parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="what to measure")
        parser.add_argument("--layers", choices=("auto", "all"), default="auto")
        parser.add_argument("--contribution-steps", type=int, default=AnalysisOptions.contribution_steps)
        parser.add_argument("--steps", type=int, nargs="*", default=[2, 3, 4, 8, 16], help="nodes of the step study")
        parser.add_argument("--images", type=int, nargs="*", default=[25, 50, 100], help="images of the images study")
        parser.add_argument(
            "--turning-layers", type=int, default=2, help="last layers that turning points are found in"
        )
        parser.add_argument("--removal-layers", type=int, default=1, help="last layers whose units are removed singly")
        parser.add_argument(
            "--study-layers", type=int, default=3, help="last layers in the studies of steps and images"
        )
        parser.add_argument("--overfit-per-class", type=int, default=100, help="training images of the overfit network")
        parser.add_argument("--overfit-epochs", type=int, default=60)
        parser.add_argument("--quick", action="store_true", help="few steps and images, to see that it runs")

    options = common.parse(
        argv,
        __doc__,
        cost="1 hour on one core, 3 seeds; 6 hours with ResNet-20 and ResNet-56, 1 of them with --parts contribution.",
        full={"width": 4.0, "train_per_class": 2500, "epochs": 60},
        options=own,
        images_per_class=100,
        epochs=15,
    )
    if options.quick:
        options.steps, options.images = [1, 2], [options.images_per_class]
        options.turning_layers = options.study_layers = options.removal_layers = 1
        options.overfit_per_class, options.overfit_epochs = 2 * options.images_per_class, 1
    images = common.load_images(options)
    tables: dict[str, list[dict]] = {}
    for seed in common.progress(range(options.seeds), "reliability"):
        for case in cases(images, options, seed):
            for table, row in measure(case, images, options, seed):
                tables.setdefault(table, []).append({"network": case.name, "seed": seed} | row)
                common.write_csv(options.out / f"reliability{table}.csv", tables[table])
    report(tables)
    plot(tables.get("", []), options.out / "reliability.png")


def measure(
    case: Case, images: common.Images, options: argparse.Namespace, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of one network, each with the name of its table."""
    pairs = two_pairs(case, images, options.images_per_class, seed)
    parts, steps = options.parts, options.contribution_steps
    for back, layer in enumerate(reversed(case.layers)):
        bench, here = Bench(case, layer, options), {"layer": layer}
        if "contribution" in parts:
            yield "", here | {"definition": "contribution"} | by_contribution(bench, pairs, steps=steps)
        if "removal" in parts and back < options.removal_layers:
            yield "", here | {"definition": "removal"} | by_contribution(bench, pairs, steps=steps, removal=True)
        if "turning_point" in parts and back < options.turning_layers:
            for order in ORDERS:
                yield "", here | {"definition": f"turning_point, {order}"} | by_turning_point(bench, pairs, order)
        if "effect" in parts:
            for least in EFFECTS:
                yield "_effect", here | {"least": least} | by_contribution(bench, pairs, steps=steps, least=least)
        if back >= options.study_layers:
            continue
        for number in options.steps if "steps" in parts else []:
            same = same_images(bench, pairs, number, max(options.steps))
            row = by_contribution(bench, pairs, steps=number)
            yield "_steps", here | {"steps": number, "agreement_with_most": same} | row
        for number in options.images if "images" in parts else []:
            fewer = two_pairs(case, images, number, seed)
            yield "_images", here | {"of_each": number} | by_contribution(bench, fewer, steps=steps)


COLUMNS = {
    "agreement": ".2f",
    "role_agreement": ".2f",
    "helps": ".2f",
    "train_only": ".3f",
    "val_only": ".3f",
    "differs": ".3f",
    "null_train_one_sided": ".3f",
    "null_test_one_sided": ".3f",
    "null_train_differs": ".3f",
    "null_test_differs": ".3f",
    "rank_agreement": ".2f",
    "rank_agreement_entropy": ".2f",
    "completeness_error": ".3f",
    "agreement_with_most": ".2f",
    "seconds": ".1f",
}


def report(tables: Mapping[str, Sequence[dict]]) -> None:
    """One table for each study, means and spreads over the seeds."""
    for rows in tables.values():
        study = next((key for key in ("definition", "least", "steps", "of_each") if key in rows[0]), "")
        columns = [column for column in COLUMNS if any(column in row for row in rows)]
        keys = list(dict.fromkeys((row["network"], row["layer"], row[study]) for row in rows))
        table = []
        for network, layer, value in keys:
            some = [r for r in rows if (r["network"], r["layer"], r[study]) == (network, layer, value)]
            cells = [common.spread([r.get(column, float("nan")) for r in some], COLUMNS[column]) for column in columns]
            table.append([network, layer.removeprefix("net."), value, *cells])
        common.print_table(["network", "layer", study, *columns], table)


def plot(rows: Sequence[dict], path: Path) -> None:
    """Agreement of both definitions, layer by layer."""
    places = list(dict.fromkeys((row["network"], row["layer"]) for row in rows))
    drawn, (axis,) = common.figure(1, width=6.5, height=1.2 + 0.22 * len(places))
    for (definition, label), color in zip(SHOWN.items(), ("#0072B2", "#D55E00"), strict=True):
        some = [row for row in rows if row["definition"] == definition]
        heights = [places.index((row["network"], row["layer"])) for row in some]
        axis.plot([row["agreement"] for row in some], heights, "o", color=color, label=label, alpha=0.6)
    axis.set_yticks(range(len(places)), [f"{network}: {layer.removeprefix('net.')}" for network, layer in places])
    axis.tick_params(axis="y", labelsize=7)
    axis.invert_yaxis()
    axis.axvline(0.85, color="#999999", linestyle=":")
    axis.set_xlabel("agreement of what helps on two samples of images (Cohen's kappa)")
    axis.legend(fontsize=8, frameon=False)
    common.save_plot(drawn, path)


if __name__ == "__main__":
    main()
