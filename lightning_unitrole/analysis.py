"""The whole pipeline for a plain model: record, rank, ablate, assign roles.

:class:`UnitAnalysis` holds its parts, for those who drive them piece by piece; :func:`analyze` runs them in one go.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from lightning_unitrole.ablation import (
    AblationRequest,
    ScoreFn,
    ablation_curves,
    classification_score,
    first_tensor,
)
from lightning_unitrole.ablation.engine import model_device
from lightning_unitrole.criteria import (
    Criterion,
    UnitStatistics,
    needs_activation,
    needs_gradient,
    rank_overall,
    rank_units,
    resolve_criterion,
    score_units,
)
from lightning_unitrole.data.batches import BatchFn, GroupFn, split_batch
from lightning_unitrole.data.loaders import DataSource, as_batches, first_batch
from lightning_unitrole.data.probe import Probe, ProbeBatch
from lightning_unitrole.entropy import feature_entropy
from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.forwards import undisturbed
from lightning_unitrole.isolation import preserve_rng
from lightning_unitrole.pruning.selection import LayerEvidence
from lightning_unitrole.recording import SumOverProcesses, UnitRecorder
from lightning_unitrole.results import NO_ROLE, AblationCurve, LayerReport, SplitReport, UnitReport
from lightning_unitrole.roles import assign_roles, effective_set, summarize_roles
from lightning_unitrole.topology import BACKENDS, birth_points
from lightning_unitrole.units import UnitLayer, UnitTap, find_unit_layers, select_layers


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """What to analyse and how.

    Attributes:
        layers: ``"auto"`` for the last convolution of each resolution, ``"all"``, or names or glob patterns of
            convolutions.
        images_per_class: images of each class to use, at most; training and validation use the same number.
        criterion: how units are ranked, a name of :data:`lightning_unitrole.criteria.CRITERIA` or a function from
            :class:`~lightning_unitrole.criteria.UnitStatistics` to scores ``[classes, units]``, higher more effective.
        ablation_points: numbers of ablated units that a curve is measured at, about; 0 for no ablation, and with it
            no roles.
        num_classes: number of classes; taken from the width of the model's output when left out.
        class_names: a name for each class, in the order of their indices.
        max_birth: largest birth point that is told apart.
        max_density: share of the edges that enter the filtration.
        backend: topology backend, see :func:`~lightning_unitrole.topology.birth_points`.
        batch_fn: function from a batch to ``(inputs, targets)``.
        group_fn: function from a batch's targets to ``[B]`` group indices, to group images by something other than
            their label; needs ``num_classes`` or ``class_names``.
        score_fn: function from outputs and targets to the loss ``[B]`` and the score ``[B]`` of each image, for tasks
            other than single-label classification.

    Raises:
        SettingError: if a value is out of range.
    """

    layers: str | Sequence[str] = "auto"
    images_per_class: int = 100
    criterion: str | Criterion = "feature_entropy"
    ablation_points: int = 64
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    max_birth: int = 50
    max_density: float = 0.8
    backend: str = "auto"
    batch_fn: BatchFn | None = None
    group_fn: GroupFn | None = None
    score_fn: ScoreFn | None = None

    def __post_init__(self) -> None:
        if self.ablation_points == 1:
            raise SettingError("ablation_points=1; expected at least 2 to make a curve, or 0 for no ablation.")
        for name, least in (("images_per_class", 1), ("ablation_points", 0), ("max_birth", 1), ("num_classes", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise SettingError(f"{name}={value!r}; expected an integer of at least {least}.")
        if not 0 < self.max_density <= 1:
            raise SettingError(f"max_density={self.max_density!r}; expected a number above 0 and at most 1.")
        if self.class_names is not None and self.num_classes not in (None, len(self.class_names)):
            raise SettingError(
                f"class_names has {len(self.class_names)} entries and num_classes={self.num_classes}; expected equal "
                "numbers."
            )
        if self.group_fn is not None and self.num_classes is None and self.class_names is None:
            raise SettingError("group_fn is given without num_classes; pass num_classes=, the number of groups.")
        resolve_criterion(self.criterion)
        if self.backend not in BACKENDS:
            raise SettingError(f"backend={self.backend!r}; expected one of {', '.join(BACKENDS)}.")


Key = TypeVar("Key")
Advance = Callable[[], None]
Progress = Callable[[int, str], AbstractContextManager[Advance]]


@contextmanager
def no_progress(total: int, description: str) -> Iterator[Advance]:
    """A progress bar that shows nothing."""
    yield lambda: None


def gather_alone(values: Tensor) -> Tensor:
    """What a single process gathers: its own tensor ``[B]`` as ``[1, B]``."""
    return values.unsqueeze(0)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How to run the model.

    Attributes:
        forward: from the inputs of a batch to the model's outputs.
        transfer: brings a whole batch to the model's device.
        device: the model's device.
        reduce: sums a tensor over processes; None with a single process.
        gather: stacks a tensor ``[B]`` of every process into ``[processes, B]``.
        shard: index of this process.
        shards: number of processes.
        progress: context manager around long work, from a number of steps and a description to a function that is
            called after each step.
    """

    forward: Callable[[Any], Any]
    transfer: Callable[[Any], Any]
    device: torch.device
    reduce: SumOverProcesses | None = None
    gather: Callable[[Tensor], Tensor] = gather_alone
    shard: int = 0
    shards: int = 1
    progress: Progress = no_progress

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over processes."""
        return values if self.reduce is None else self.reduce(values)


class UnitAnalysis:
    """The pipeline's parts for one model, with the layers found on a first batch.

    Args:
        model: the model.
        settings: what to analyse.
        runtime: how to run the model.
        batch: any batch, already on the model's device; two images are enough.

    Attributes:
        layers: the chosen layers, in the order in which the model runs them.
        skipped: for each convolution that was left out, why.
        num_classes: number of classes or groups.
        example_inputs: the inputs of ``batch``.

    Raises:
        SettingError: if a layer is unknown or cannot be analysed.
        DataError: if the batch has no labels, or the number of classes cannot be seen from the outputs.
        BackendError: if the topology backend cannot run on the model's device.
    """

    def __init__(self, model: nn.Module, settings: AnalysisSettings, runtime: Runtime, batch: Any) -> None:
        self.model, self.settings, self.runtime = model, settings, runtime
        birth_points(torch.zeros(0, 4, 4, device=runtime.device), backend=settings.backend)
        inputs, _ = split_batch(batch, settings.batch_fn)
        self.example_inputs = inputs
        with self._undisturbed():
            found = find_unit_layers(runtime.forward, model, inputs)
            self.layers: list[UnitLayer] = select_layers(found, settings.layers)
            self.skipped: Mapping[str, str] = found.skipped
            self.num_classes = self._count_classes(inputs)
        names = settings.class_names or [str(index) for index in range(self.num_classes)]
        self.class_names = tuple(str(name) for name in names)

    def probe(self, source: DataSource, *, name: str) -> Probe:
        """The first images of each class of a data source."""
        return Probe(
            source,
            name=name,
            num_groups=self.num_classes,
            images_per_group=self.settings.images_per_class,
            batch_fn=self.settings.batch_fn,
            group_fn=self.settings.group_fn,
        )

    def recorders(self, criteria: Sequence[str | Criterion] | None = None) -> dict[str, UnitRecorder]:
        """An empty recorder for each layer, by the layer's name, that gathers what ``criteria`` read."""
        settings = self.settings
        return {
            layer.name: UnitRecorder(
                self.num_classes,
                layer.num_units,
                images_per_class=settings.images_per_class,
                device=self.runtime.device,
                activation=any(map(needs_activation, criteria or [settings.criterion])),
                max_birth=settings.max_birth,
                max_density=settings.max_density,
                backend=settings.backend,
            )
            for layer in self.layers
        }

    def record(
        self, probe: Probe, quota: Tensor, *, criteria: Sequence[str | Criterion] | None = None
    ) -> dict[str, UnitRecorder]:
        """Run a probe through the model and record every layer.

        Args:
            probe: the images.
            quota: ``[C]`` images to use of each class.
            criteria: gather what these read; by default the one of the settings.
        """
        recorders = self.recorders(criteria)
        groups = torch.empty(0, dtype=torch.int64)

        def take(layer: UnitLayer, maps: Tensor) -> None:
            recorders[layer.name].update(maps, groups)

        runtime = self.runtime
        with self._undisturbed(), UnitTap(self.model, self.layers, take) as tap:
            for batch in probe.batches(quota, shard=runtime.shard, shards=runtime.shards):
                inputs, _ = self._take_apart(batch)
                groups = batch.groups.to(runtime.device)
                tap.reset()
                runtime.forward(inputs)
        return recorders

    def statistics(
        self,
        recorders: Mapping[str, UnitRecorder],
        probe: Probe,
        quota: Tensor,
        *,
        criteria: Sequence[str | Criterion] | None = None,
    ) -> dict[str, UnitStatistics]:
        """What recorders gathered, summed over processes, and the gradients where a criterion reads them."""
        sensitivity: Mapping[str, Tensor] = {}
        if any(map(needs_gradient, criteria or [self.settings.criterion])):
            sensitivity = self._sensitivity(probe, quota)
        return {
            layer.name: recorders[layer.name].statistics(
                filter_norm(self.model, layer),
                sensitivity=sensitivity.get(layer.name),
                reduce=self.runtime.reduce,
            )
            for layer in self.layers
        }

    def split_report(self, layer: UnitLayer, statistics: UnitStatistics, probe: Probe, quota: Tensor) -> SplitReport:
        """Rank the units of a layer by what was gathered on one split, and ablate them on the same images."""
        score = score_units(self.settings.criterion, statistics)
        order = rank_units(score)
        overall = rank_overall(order, statistics.images)
        curves, class_curves = self._ablate_ranking(layer, order, overall, probe, quota)
        entropy, selective_rate, ineffectiveness = feature_entropy(statistics.counts)
        return SplitReport(
            images=statistics.images,
            entropy=entropy,
            selective_rate=selective_rate,
            ineffectiveness=ineffectiveness,
            non_finite=statistics.non_finite,
            score=score,
            order=order,
            overall_order=overall,
            curves=curves,
            class_curves=class_curves,
        )

    def report(
        self,
        train: Mapping[str, UnitStatistics],
        val: Mapping[str, UnitStatistics],
        *,
        train_probe: Probe,
        val_probe: Probe,
        quota: Tensor,
        epoch: int = 0,
        global_step: int = 0,
    ) -> UnitReport:
        """Rank and ablate on both splits, and assign roles.

        Args:
            train: statistics of each layer on training images.
            val: statistics of each layer on validation images.
            train_probe: the training images.
            val_probe: the validation images.
            quota: ``[C]`` images of each class that were used, the same on both sides.
            epoch: epoch of the trainer.
            global_step: optimizer steps taken so far.
        """
        layers = {}
        steps = 2 * len(self.layers) if self.settings.ablation_points else 0
        with self._undisturbed(), self.runtime.progress(steps, "Unit roles: ablation") as advance:
            for layer in self.layers:
                splits = []
                for statistics, probe in ((train[layer.name], train_probe), (val[layer.name], val_probe)):
                    splits.append(self.split_report(layer, statistics, probe, quota))
                    advance()
                layers[layer.name] = _layer_report(layer, *splits)
        train_probe.release()
        val_probe.release()
        return UnitReport(
            layers=layers,
            skipped=dict(self.skipped),
            class_names=self.class_names,
            criterion=resolve_criterion(self.settings.criterion)[0],
            epoch=epoch,
            global_step=global_step,
        )

    def evidence(self, probe: Probe, quota: Tensor, *, criteria: Sequence[str | Criterion]) -> list[LayerEvidence]:
        """What pruning needs to know of each layer: a ranking of its units, and what ablating them in that order does.

        Args:
            probe: the images.
            quota: ``[C]`` images to use of each class.
            criteria: how to rank; of several, each layer takes the one whose least effective units cost least
                accuracy, that is the largest area under the ablation curve.
        """
        statistics = self.statistics(self.record(probe, quota, criteria=criteria), probe, quota, criteria=criteria)
        found = []
        with self._undisturbed(), self.runtime.progress(len(self.layers), "Unit pruning: ablation") as advance:
            for layer in self.layers:
                measured = statistics[layer.name]
                orders = [
                    rank_overall(rank_units(score_units(criterion, measured)), measured.images)
                    for criterion in criteria
                ]
                curves: dict[int, AblationCurve] = {}
                if self.settings.ablation_points:
                    requests = {index: AblationRequest(order.flip(0)) for index, order in enumerate(orders)}
                    curves = self.ablate(layer, requests, probe, quota)
                best = max(curves, key=lambda index: curves[index].area, default=0)
                found.append(LayerEvidence(layer.name, orders[best], curves.get(best)))
                advance()
        return found

    def accuracy(self, probe: Probe, quota: Tensor) -> float:
        """Mean score of the images of a probe: accuracy, unless a ``score_fn`` says otherwise.

        Args:
            probe: the images.
            quota: ``[C]`` images to use of each class.
        """
        runtime, score_fn = self.runtime, self.settings.score_fn or classification_score
        found = torch.zeros(2, dtype=torch.float64)  # on the CPU: not every device has float64
        with self._undisturbed():
            for batch in probe.batches(quota, shard=runtime.shard, shards=runtime.shards):
                inputs, targets = self._take_apart(batch)
                _, score = score_fn(runtime.forward(inputs), targets)
                found += torch.tensor([float(score.sum()), len(score)], dtype=torch.float64)
        right, images = runtime.total(found).tolist()
        return right / images if images else float("nan")

    def _ablate_ranking(
        self, layer: UnitLayer, order: Tensor, overall: Tensor, probe: Probe, quota: Tensor
    ) -> tuple[dict[str, AblationCurve], tuple[AblationCurve | None, ...]]:
        if not self.settings.ablation_points:
            return {}, ()
        shuffled = torch.randperm(layer.num_units, generator=torch.Generator().manual_seed(0))
        overall_requests = {
            "least_first": AblationRequest(overall.flip(0)),
            "most_first": AblationRequest(overall),
            "random": AblationRequest(shuffled),
        }
        class_requests = {
            index: AblationRequest(order[index].flip(0), group=index)
            for index in range(self.num_classes)
            if int(quota[index])
        }
        curves = self.ablate(layer, {**overall_requests, **class_requests}, probe, quota)
        by_class = tuple(curves.get(index) for index in range(self.num_classes))
        return {name: curves[name] for name in overall_requests}, by_class

    def ablate(
        self, layer: UnitLayer, requests: Mapping[Key, AblationRequest], probe: Probe, quota: Tensor
    ) -> dict[Key, AblationCurve]:
        """Several ablation curves of a layer at once, on the images of a probe.

        Args:
            layer: the layer.
            requests: the orders, and for each the group of images that count.
            probe: the images.
            quota: ``[C]`` images to use of each class.

        Returns:
            A curve for each request that has images.
        """
        runtime = self.runtime

        def batches() -> Iterator[tuple[Any, Any, Tensor]]:
            for batch in probe.batches(quota, shard=runtime.shard, shards=runtime.shards):
                yield (*self._take_apart(batch), batch.groups.to(runtime.device))

        curves = ablation_curves(
            self.model,
            layer,
            list(requests.values()),
            batches,
            points=self.settings.ablation_points,
            forward=runtime.forward,
            score_fn=self.settings.score_fn,
            reduce=runtime.reduce,
        )
        return {key: curve for key, curve in zip(requests, curves, strict=True) if curve is not None}

    def _sensitivity(self, probe: Probe, quota: Tensor) -> dict[str, Tensor]:
        """``[C, U]`` sums over images of ``|sum over the map of activation x gradient of the loss|``, by layer."""
        runtime, score_fn = self.runtime, self.settings.score_fn or classification_score
        tapped: dict[str, Tensor] = {}
        totals = {
            layer.name: torch.zeros(self.num_classes, layer.num_units, dtype=torch.float64, device=runtime.device)
            for layer in self.layers
        }

        def keep(layer: UnitLayer, maps: Tensor) -> Tensor:
            # Connected to what is behind it, and to the layers before it only through this leaf-like copy.
            tapped[layer.name] = maps if maps.requires_grad else maps.detach().requires_grad_()
            return tapped[layer.name]

        with self._undisturbed(), torch.enable_grad(), UnitTap(self.model, self.layers, keep) as tap:
            for batch in probe.batches(quota, shard=runtime.shard, shards=runtime.shards):
                inputs, targets = self._take_apart(batch)
                groups = batch.groups.to(runtime.device)
                tapped.clear()
                tap.reset()
                loss, _ = score_fn(runtime.forward(inputs), targets)
                names = list(tapped)
                gradients = torch.autograd.grad(loss.sum(), [tapped[name] for name in names], allow_unused=True)
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        effect = (tapped[name].detach() * gradient).sum((2, 3)).abs().double()
                        totals[name].index_add_(0, groups, effect)
        return totals

    def _take_apart(self, batch: ProbeBatch) -> tuple[Any, Any]:
        inputs, targets = split_batch(self.runtime.transfer(batch.batch), self.settings.batch_fn)
        if isinstance(targets, (list, tuple)) and self.settings.score_fn is None:
            targets = torch.as_tensor(targets, device=self.runtime.device)
        return inputs, targets

    def _count_classes(self, inputs: Any) -> int:
        if self.settings.class_names is not None:
            return len(self.settings.class_names)
        if self.settings.num_classes is not None:
            return self.settings.num_classes
        outputs = first_tensor(self.runtime.forward(inputs))
        if outputs.ndim != 2:
            raise DataError(
                f"The model's output has shape {list(outputs.shape)}; expected [images, classes] to see the number of "
                "classes. Pass num_classes=."
            )
        return int(outputs.shape[1])

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        with preserve_rng(), undisturbed(self.model):
            yield


def _layer_report(layer: UnitLayer, train: SplitReport, val: SplitReport) -> LayerReport:
    classes, units = val.entropy.shape
    roles = torch.zeros(0, units, dtype=torch.uint8)
    summary = torch.zeros(0, dtype=torch.uint8)
    if val.class_curves:
        roles = torch.full((classes, units), NO_ROLE, dtype=torch.uint8)
        for index, (on_train, on_val) in enumerate(zip(train.class_curves, val.class_curves, strict=True)):
            if on_train is not None and on_val is not None:
                roles[index] = assign_roles(
                    effective_set(train.order[index], on_train.turning_point),
                    effective_set(val.order[index], on_val.turning_point),
                )
        summary = summarize_roles(roles)
    return LayerReport(name=layer.name, map_size=layer.map_size, train=train, val=val, roles=roles, summary=summary)


def filter_norm(model: nn.Module, layer: UnitLayer) -> Tensor:
    """``[U]`` L1 norm of the weights of each filter of a layer."""
    weight = model.get_submodule(layer.conv).get_parameter("weight").detach()
    return weight.abs().flatten(1).sum(1)


def common_quota(train: Tensor, val: Tensor) -> Tensor:
    """Images of each class that both splits have.

    Entropy that is estimated from fewer images is biased low, so unequal numbers would fake a difference.

    Args:
        train: ``[C]`` training images found.
        val: ``[C]`` validation images found.

    Raises:
        DataError: if no class has images on both sides.
    """
    quota = torch.minimum(train, val)
    if not bool(quota.any()):
        raise DataError(
            f"No class has images on both sides: training has {int(train.sum())} images of {int((train > 0).sum())} "
            f"classes, validation {int(val.sum())} of {int((val > 0).sum())}. Check that neither set is empty and that "
            "both use the same labels."
        )
    return quota


def shortage(train: Tensor, val: Tensor, *, wanted: int, class_names: Sequence[str]) -> str | None:
    """What to tell the user where classes have fewer images than wanted; None where none has.

    Args:
        train: ``[C]`` training images found, up to ``wanted``.
        val: ``[C]`` validation images found, up to ``wanted``.
        wanted: images a class that were asked for.
        class_names: names of the classes.
    """
    quota = torch.minimum(train, val)
    short = (quota < wanted).nonzero().flatten().tolist()
    if not short:
        return None
    listed = "; ".join(f"{class_names[c]!r}: {int(train[c])} and {int(val[c])}" for c in short[:5])
    more = f"; and {len(short) - 5} more" if len(short) > 5 else ""
    missing = [class_names[c] for c in short if not int(quota[c])]
    without = f" No roles for {', '.join(map(repr, missing[:5]))}: one side has no image of it." if missing else ""
    return (
        f"images_per_class={wanted}, but {len(short)} of {len(quota)} classes have fewer. Training and validation "
        f"images found: {listed}{more}. Both sides use the smaller number of each class.{without}"
    )


def non_finite_maps(report: UnitReport) -> str | None:
    """What to tell the user where maps held NaN or infinity; None where none did."""
    found = [
        f"{layer.name!r} ({int(layer.train.non_finite.sum())} training, {int(layer.val.non_finite.sum())} validation)"
        for layer in report.layers.values()
        if bool(layer.train.non_finite.any()) or bool(layer.val.non_finite.any())
    ]
    if not found:
        return None
    return (
        "Maps with NaN or infinity have no birth point and were left out of the entropy. They are in "
        f"{', '.join(found)}. Look for an overflow in the layers before the first of these."
    )


def start_analysis(
    model: nn.Module,
    data: DataSource,
    settings: AnalysisSettings,
    *,
    name: str,
    forward: Callable[[Any], Any] | None = None,
    progress: Progress = no_progress,
) -> UnitAnalysis:
    """The analysis of a plain model where its parameters lie, its layers found on the first images of ``data``."""
    device = model_device(model)

    def transfer(batch: Any) -> Any:
        return apply_to_collection(batch, Tensor, lambda values: values.to(device))

    runtime = Runtime(forward=forward or model, transfer=transfer, device=device, progress=progress)
    return UnitAnalysis(model, settings, runtime, transfer(first_batch(as_batches(data, name=name), name=name)))


def analyze(
    model: nn.Module,
    train_data: DataSource,
    val_data: DataSource,
    *,
    layers: str | Sequence[str] = "auto",
    images_per_class: int = 100,
    criterion: str | Criterion = "feature_entropy",
    ablation_points: int = 64,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    max_birth: int = 50,
    max_density: float = 0.8,
    backend: str = "auto",
    batch_fn: BatchFn | None = None,
    group_fn: GroupFn | None = None,
    score_fn: ScoreFn | None = None,
    forward: Callable[[Any], Any] | None = None,
    progress: Progress = no_progress,
) -> UnitReport:
    """What each unit of a model is good for: the monitor's analysis, without a Trainer.

    The model runs where its parameters lie, in evaluation mode; its modes, buffers and all random states are left as
    they were. The images used are the first ``images_per_class`` of each class, the same number on both sides.

    Args:
        model: maps the inputs of a batch to logits ``[images, classes]``, or to a structure whose first tensor is
            these.
        train_data: a ``DataLoader``, a ``Dataset`` or a list of batches.
        val_data: the same.
        layers: see :class:`AnalysisSettings`, as for all arguments up to ``score_fn``.
        images_per_class: images of each class, at most.
        criterion: how units are ranked.
        ablation_points: numbers of ablated units that a curve is measured at; 0 for no ablation and no roles.
        num_classes: number of classes.
        class_names: a name for each class.
        max_birth: largest birth point that is told apart.
        max_density: share of the edges that enter the filtration.
        backend: topology backend.
        batch_fn: function from a batch to ``(inputs, targets)``.
        group_fn: function from targets to group indices.
        score_fn: function from outputs and targets to losses and scores.
        forward: called with the inputs instead of ``model``.
        progress: progress bar, see :class:`Runtime`.

    Raises:
        SettingError: if a setting is out of range or a layer unknown.
        DataError: if the data do not fit; the message says what was found and what was expected.

    Source: arXiv:2103.09716v1 (entropy, ablation), arXiv:2011.00789 (roles).
    """
    settings = AnalysisSettings(
        layers=layers,
        images_per_class=images_per_class,
        criterion=criterion,
        ablation_points=ablation_points,
        num_classes=num_classes,
        class_names=class_names,
        max_birth=max_birth,
        max_density=max_density,
        backend=backend,
        batch_fn=batch_fn,
        group_fn=group_fn,
        score_fn=score_fn,
    )
    analysis = start_analysis(model, train_data, settings, name="training", forward=forward, progress=progress)
    train_probe = analysis.probe(train_data, name="training")
    val_probe = analysis.probe(val_data, name="validation")
    found = train_probe.available(), val_probe.available()
    quota = common_quota(*found)
    if message := shortage(*found, wanted=images_per_class, class_names=analysis.class_names):
        warnings.warn(message, stacklevel=2)
    train = analysis.statistics(analysis.record(train_probe, quota), train_probe, quota)
    val = analysis.statistics(analysis.record(val_probe, quota), val_probe, quota)
    report = analysis.report(train, val, train_probe=train_probe, val_probe=val_probe, quota=quota)
    if message := non_finite_maps(report):
        warnings.warn(message, stacklevel=2)
    return report
