"""Reports as a training might give them: roles that settle as epochs go by, entropy that falls, units that are pruned.

Run as a script to write logs to look at: ``python tests/tensorboard_plugin/synthetic.py LOGDIR``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lightning_unitrole.reports.contributions import Contributions
from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.effects import (
    HELPS,
    NO_EFFECT,
    agreement_between_halves,
    class_effects,
    overall_effects,
    roles_from_effects,
)
from lightning_unitrole.reports.examples import LayerExamples, SplitExamples
from lightning_unitrole.reports.layer import LayerReport, RemovalCheck, SplitReport
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import UnitRole, summarize_roles
from lightning_unitrole.reports.vocabulary import NO_ROLE, UNDECIDED
from lightning_unitrole.tensorboard_plugin.summary import PluginState, write_report

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Spec:
    """One layer of the imagined network.

    Attributes:
        noise: how much contributions differ from image to image; with much of it there are too few images for roles.
        lean: how much better than elsewhere units do on training images.
        tied: whether the criterion cannot tell the units apart.
        redundant: whether the network is as good without the units that have no effect.
    """

    name: str
    units: int
    map_size: tuple[int, int] = (14, 14)
    noise: float = 1.0
    lean: float = 0.0
    tied: bool = False
    redundant: bool = True


LAYERS = (
    Spec("features.0", 32, (28, 28)),
    Spec("features.3", 64),
    Spec("features.6", 96),
    Spec("features.8", 128, (7, 7)),
)


CONTRIBUTING = (
    Spec("features.0", 16, (28, 28)),
    Spec("features.3", 24, noise=9.0),
    Spec("features.6", 32, (7, 7), lean=1.2, redundant=False),
    Spec("features.8", 12, (2, 2), tied=True),
)
"""For roles by contribution: a sound layer, one with too few images, one that memorises, one without an order."""


class Training:
    """Gives one report after another; every unit has a latent usefulness for each class that drifts and settles."""

    def __init__(
        self,
        layers: Sequence[Spec] = LAYERS,
        classes: Sequence[str] = CLASSES,
        *,
        ablation: bool = True,
        class_curves: bool = True,
        contributions: bool = False,
        images: bool = False,
        images_each: int = 50,
        points: int = 33,
        seed: int = 0,
    ) -> None:
        self.layers, self.classes, self.seed = tuple(layers), tuple(classes), seed
        self.ablation, self.class_curves, self.points = ablation, class_curves and not contributions, points
        self.contributions, self.images, self.images_each = contributions, images, images_each
        self.random = np.random.default_rng(seed)
        self.latent = {spec.name: self.random.normal(0, 1, (len(classes), spec.units)) for spec in layers}
        # Some units lean to the training images, a few to the validation images.
        self.lean = {
            spec.name: self.random.normal(0.15 + 0.1 * depth, 0.5, spec.units) for depth, spec in enumerate(layers)
        }
        self.quality = {spec.name: self.random.normal(0, 0.8, spec.units) for spec in layers}

    def report(self, epoch: int, epochs: int, kept: dict[str, np.ndarray] | None = None, step: int = 0) -> UnitReport:
        progress = 1 - np.exp(-3.5 * (epoch + 1) / epochs)
        reports = {}
        for depth, spec in enumerate(self.layers):
            noise = self.random.normal(0, 0.9 * (1 - progress) + 0.06, (len(self.classes), spec.units))
            self.latent[spec.name] = 0.97 * self.latent[spec.name] + noise * 0.4
            slots = (kept or {}).get(spec.name, np.arange(spec.units))
            reports[spec.name] = self._layer(spec, depth / max(1, len(self.layers) - 1), progress, slots)
        definition = "contribution" if self.contributions else "turning_point"
        examples = self._examples(reports) if self.images else {}
        return UnitReport(reports, {}, self.classes, "feature_entropy", epoch, step, definition, examples)

    def _examples(self, layers: dict[str, LayerReport]) -> dict[str, SplitExamples]:
        """Six pictures for each side, of another grey each; unit u looks at those with places u, u + 1 and u + 2."""
        found = {}
        for side, split in enumerate(("train", "val")):
            shades = torch.arange(6, dtype=torch.uint8) * 40 + 5 * side
            pictures = shades.view(6, 1, 1, 1).expand(6, 16, 16, 1).contiguous()
            of_layer = {}
            for name, layer in layers.items():
                units = torch.arange(layer.num_units)
                images = (units + torch.arange(3).view(3, 1)) % 6
                values = torch.tensor([0.5, 0.3, 0.1]).view(3, 1).expand(3, layer.num_units)
                maps = torch.zeros(2, 3, layer.num_units, 4, 4, dtype=torch.uint8)
                maps[..., 0, 0] = 255
                of_layer[name] = LayerExamples(
                    images=torch.stack([images, images]),
                    values=torch.stack([values, 10 * values]),
                    maps=maps,
                    twins=((units + 1) % layer.num_units).unsqueeze(0),
                    correlation=torch.full((1, layer.num_units), 0.75),
                )
            found[split] = SplitExamples(pictures, torch.arange(6) % len(self.classes), of_layer)
        return found

    def _layer(self, spec: Spec, depth: float, progress: float, slots: np.ndarray) -> LayerReport:
        strength = (self.latent[spec.name] + self.quality[spec.name])[:, slots] + 1.6 * progress - 0.9
        lean = self.lean[spec.name][slots] * (0.3 + progress)
        train, val = strength + lean, strength - lean
        roles = torch.from_numpy((train > 0) * int(UnitRole.TRAIN_ONLY) + (val > 0) * int(UnitRole.VAL_ONLY))
        roles = roles.to(torch.uint8) if self.ablation else torch.empty(0, len(slots), dtype=torch.uint8)
        found = LayerReport(
            spec.name,
            spec.map_size,
            self._split(train, depth, progress, 1.0),
            self._split(val, depth, progress, 0.9),
            roles,
            summarize_roles(roles) if self.ablation else torch.empty(0, dtype=torch.uint8),
        )
        return self._contributing(found, spec, strength, progress) if self.contributions else found

    def _contributing(self, layer: LayerReport, spec: Spec, strength: np.ndarray, progress: float) -> LayerReport:
        """The same layer with roles by contribution, and all that is measured with them."""
        helpful = np.where(strength > 0.4, strength, 0) - 0.4 * (strength < -1.8)
        shared = helpful.copy()
        shared[:, ::2] -= spec.lean * helpful[:, ::2]
        sides = {
            "train": self._measured(0.2 * helpful, spec.noise),
            "val": self._measured(0.2 * shared, spec.noise),
        }
        effects = class_effects(sides["train"], sides["val"])
        over_all = overall_effects(sides["train"], sides["val"])
        accuracy = 0.3 + 0.65 * progress
        removed = int((over_all.val == NO_EFFECT).sum())
        check = RemovalCheck(
            images=200,
            accuracy=accuracy,
            loss=1 - accuracy,
            removed=removed,
            removed_accuracy=accuracy - (0.0 if spec.redundant else 0.1),
            removed_loss=1 - accuracy,
            helpers=int((over_all.val == HELPS).sum()),
            helpers_accuracy=accuracy - 0.02,
            helpers_loss=1 - accuracy,
            random_accuracy=torch.tensor([0.5, 0.6], dtype=torch.float64) * accuracy,
            random_loss=torch.ones(2, dtype=torch.float64),
        )
        val = replace(layer.val, contributions=sides["val"], rank_agreement=0.7)
        if spec.tied:
            nothing = torch.full_like(val.entropy, torch.nan)
            val = replace(val, entropy=nothing, ineffectiveness=nothing, score=nothing, rank_agreement=float("nan"))
        return replace(
            layer,
            train=replace(layer.train, contributions=sides["train"], curves={}),
            val=val,
            roles=roles_from_effects(effects),
            summary=roles_from_effects(over_all),
            effects=effects,
            summary_effects=over_all,
            agreement=agreement_between_halves(sides["train"], sides["val"]),
            check=check,
            macs=1500 * layer.num_units * spec.map_size[0],
        )

    def _measured(self, mean: np.ndarray, noise: float) -> Contributions:
        """Sums over the images in each half, drawn around the mean."""
        images = self.images_each
        each = self.random.normal(mean, 0.2 * noise, (2, images, *mean.shape))
        sums, counted = torch.from_numpy(each.sum(1)), torch.full((2, len(mean)), images)
        whole = sums.sum(-1)
        return Contributions(
            counted,
            sums,
            torch.from_numpy((each**2).sum(1)),
            whole,
            whole.abs(),
            torch.zeros_like(whole),
            torch.tensor(8),
        )

    def _split(self, strength: np.ndarray, depth: float, progress: float, ceiling: float) -> SplitReport:
        classes, units = strength.shape
        entropy = np.clip(2.9 - 0.35 * strength - 0.9 * progress * (1 - 0.5 * depth), 0.05, 3.9)
        selective = 1 / (1 + np.exp(2.2 - 1.5 * depth - 0.3 * strength))
        dead = strength.mean(0) < np.quantile(strength.mean(0), 0.02)
        entropy[:, dead], selective[:, dead] = np.nan, 1.0
        ineffective = entropy / np.maximum(1 - selective, 1e-3)
        order = np.argsort(np.nan_to_num(ineffective, nan=1e9), axis=1)
        overall = np.argsort(order.argsort(1).mean(0))
        curves, class_curves = {}, ()
        if self.ablation:
            useful = float((strength > 0).mean())
            curves = {
                "least_first": self._curve(units, useful, progress, ceiling, 1.0),
                "random": self._curve(units, useful, progress, ceiling, 0.45),
                "most_first": self._curve(units, useful, progress, ceiling, 0.15),
            }
            if self.contributions:
                curves["random_1"] = self._curve(units, useful, progress, ceiling, 0.5)
                curves["contribution"] = self._curve(units, useful, progress, ceiling, 1.1)
            if self.class_curves:
                class_curves = tuple(
                    self._curve(units, float((row > 0).mean()), progress, ceiling, 1.0) for row in strength
                )
        return SplitReport(
            images=torch.full((classes,), 100),
            entropy=torch.from_numpy(entropy),
            selective_rate=torch.from_numpy(selective),
            ineffectiveness=torch.from_numpy(ineffective),
            non_finite=torch.zeros(classes, units, dtype=torch.int64),
            score=torch.from_numpy(-ineffective),
            order=torch.from_numpy(order),
            overall_order=torch.from_numpy(overall),
            curves=curves,
            class_curves=class_curves,
        )

    def _curve(self, units: int, useful: float, progress: float, ceiling: float, wisdom: float) -> AblationCurve:
        off = np.unique(np.linspace(0, units, min(self.points, units + 1)).round().astype(int))
        share = off / units
        knee = (1 - useful) * wisdom
        full, chance = ceiling * (0.35 + 0.63 * progress), 1 / len(self.classes)
        fall = 1 / (1 + np.exp((share - knee - 0.25 * wisdom - 0.1) * 14))
        accuracy = chance + (full - chance) * fall + 0.02 * np.exp(-(((share - knee) / 0.1) ** 2))
        accuracy = np.clip(accuracy + self.random.normal(0, 0.004, len(off)), 0, 1)
        loss = 2.5 * (1 - accuracy) + 0.1 * (1 - share)
        numbers = [torch.from_numpy(values) for values in (loss, accuracy, np.clip(accuracy * 1.6 + 0.2, 0, 1))]
        return AblationCurve(torch.from_numpy(off), *numbers)


def prune(spec: Spec, share: float, seed: int = 0) -> np.ndarray:
    """Indices of the units that stay."""
    chosen = np.random.default_rng(seed).permutation(spec.units)[: round(spec.units * (1 - share))]
    return np.sort(chosen)


def log_run(
    directory: Path,
    training: Training,
    epochs: int,
    *,
    steps_per_epoch: int = 100,
    prune_at: int | None = None,
    prune_share: float = 0.25,
) -> None:
    """Write a whole run."""
    for _ in log_epochs(directory, training, epochs, steps_per_epoch, prune_at, prune_share):
        pass


def log_epochs(
    directory: Path,
    training: Training,
    epochs: int,
    steps_per_epoch: int = 100,
    prune_at: int | None = None,
    prune_share: float = 0.25,
) -> Iterator[int]:
    """Write a run epoch by epoch, as a training would; gives the epoch that was just written."""
    from torch.utils.tensorboard import SummaryWriter

    known: PluginState | None = None
    kept: dict[str, np.ndarray] = {}
    with SummaryWriter(directory) as writer:
        for epoch in range(epochs):
            if epoch == prune_at:
                kept = {spec.name: prune(spec, prune_share) for spec in training.layers}
            step = (epoch + 1) * steps_per_epoch - 1
            known = write_report(writer, training.report(epoch, epochs, kept, step), step=step, known=known, kept=kept)
            yield epoch


def with_undecided(report: UnitReport, units: Sequence[int]) -> UnitReport:
    """The same report as if nobody could tell what some units are good for."""
    layers = {}
    for name, layer in report.layers.items():
        roles, summary = layer.roles.clone(), layer.summary.clone()
        roles[:, list(units)] = UNDECIDED
        summary[list(units)] = UNDECIDED
        layers[name] = replace(layer, roles=roles, summary=summary)
    return replace(report, layers=layers)


def without_images(report: UnitReport, klass: int) -> UnitReport:
    """The same report as if one class had no images."""
    layers = {}
    for name, layer in report.layers.items():
        roles = layer.roles.clone()
        roles[klass] = NO_ROLE
        layers[name] = replace(layer, roles=roles, summary=summarize_roles(roles))
    return replace(report, layers=layers)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    log_run(root / "baseline", Training(seed=1), 40, prune_at=None)
    log_run(root / "pruned", Training(seed=2), 40, prune_at=24)
    log_run(root / "wide", Training(tuple(Spec(s.name, 2 * s.units, s.map_size) for s in LAYERS), seed=3), 30)
    log_run(root / "contribution", Training(CONTRIBUTING, contributions=True, seed=5), 12)
    log_run(root / "no_ablation", Training(seed=4, ablation=False), 12)
