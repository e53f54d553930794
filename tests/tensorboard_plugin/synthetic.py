"""Reports as a training might give them: roles that settle as epochs go by, entropy that falls, units that are pruned.

Run as a script to write logs to look at: ``python tests/tensorboard_plugin/synthetic.py LOGDIR``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lightning_unitrole.reports.curves import AblationCurve
from lightning_unitrole.reports.layer import LayerReport, SplitReport
from lightning_unitrole.reports.report import UnitReport
from lightning_unitrole.reports.roles import UnitRole, summarize_roles
from lightning_unitrole.reports.vocabulary import NO_ROLE, UNDECIDED
from lightning_unitrole.tensorboard_plugin.summary import PluginState, write_report

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Spec:
    """One layer of the imagined network."""

    name: str
    units: int
    map_size: tuple[int, int] = (14, 14)


LAYERS = (
    Spec("features.0", 32, (28, 28)),
    Spec("features.3", 64),
    Spec("features.6", 96),
    Spec("features.8", 128, (7, 7)),
)


class Training:
    """Gives one report after another; every unit has a latent usefulness for each class that drifts and settles."""

    def __init__(
        self,
        layers: Sequence[Spec] = LAYERS,
        classes: Sequence[str] = CLASSES,
        *,
        ablation: bool = True,
        class_curves: bool = True,
        points: int = 33,
        seed: int = 0,
    ) -> None:
        self.layers, self.classes, self.seed = tuple(layers), tuple(classes), seed
        self.ablation, self.class_curves, self.points = ablation, class_curves, points
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
        return UnitReport(reports, {}, self.classes, "feature_entropy", epoch=epoch, global_step=step)

    def _layer(self, spec: Spec, depth: float, progress: float, slots: np.ndarray) -> LayerReport:
        strength = (self.latent[spec.name] + self.quality[spec.name])[:, slots] + 1.6 * progress - 0.9
        lean = self.lean[spec.name][slots] * (0.3 + progress)
        train, val = strength + lean, strength - lean
        roles = torch.from_numpy((train > 0) * int(UnitRole.TRAIN_ONLY) + (val > 0) * int(UnitRole.VAL_ONLY))
        roles = roles.to(torch.uint8) if self.ablation else torch.empty(0, len(slots), dtype=torch.uint8)
        return LayerReport(
            spec.name,
            spec.map_size,
            self._split(train, depth, progress, 1.0),
            self._split(val, depth, progress, 0.9),
            roles,
            summarize_roles(roles) if self.ablation else torch.empty(0, dtype=torch.uint8),
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
    from dataclasses import replace

    layers = {}
    for name, layer in report.layers.items():
        roles, summary = layer.roles.clone(), layer.summary.clone()
        roles[:, list(units)] = UNDECIDED
        summary[list(units)] = UNDECIDED
        layers[name] = replace(layer, roles=roles, summary=summary)
    return replace(report, layers=layers)


def without_images(report: UnitReport, klass: int) -> UnitReport:
    """The same report as if one class had no images."""
    from dataclasses import replace

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
    log_run(root / "no_ablation", Training(seed=4, ablation=False), 12)
