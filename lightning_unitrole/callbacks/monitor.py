"""The callback that watches units."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_unitrole.ablation import ScoreFn
from lightning_unitrole.analysis import AnalysisSettings, Runtime, UnitAnalysis, common_quota, non_finite_maps, shortage
from lightning_unitrole.comparison import compare_on_probe, misleading_layers, misleading_ranking
from lightning_unitrole.criteria import Criterion, resolve_criterion
from lightning_unitrole.data.batches import BatchFn, GroupFn
from lightning_unitrole.data.loaders import DataSource, as_batches, first_batch, is_sequential
from lightning_unitrole.data.probe import Probe
from lightning_unitrole.errors import BackendError, SettingError, UnitRoleError, refuse_newer
from lightning_unitrole.live import LiveRecording
from lightning_unitrole.logs import ReportLogger, report_scalars
from lightning_unitrole.progress import trainer_progress
from lightning_unitrole.pruning.history import removals_of
from lightning_unitrole.results import CriteriaComparison, UnitReport
from lightning_unitrole.tracing import module_of

STATE_VERSION = 1
_log = logging.getLogger(__name__)

ForwardFn = Callable[[pl.LightningModule, Any], Any]
_NOTHING_TO_VALIDATE = (
    "There is no validation batch, so UnitRoleMonitor has nothing to analyse. Pass validation data to fit; if you do, "
    "look whether they are empty and whether limit_val_batches is 0."
)
_WHEN = ("never", "suspect", "end", "every")
_COLLECTIONS = (list, tuple, dict, CombinedLoader)


class UnitRoleMonitor(pl.Callback):
    """Shows, while a network trains, what each of its units is good for.

    In the validation epochs that it analyses, the monitor taps the units' maps as batches pass and keeps histograms of
    their birth points by class. At the end of the epoch it runs the same number of training images of each class,
    ranks the units of each layer for each class on both sides, ablates them one after another, and sorts them into the
    four roles of :class:`~lightning_unitrole.results.UnitRole`. Scalars go to every logger of the trainer, figures and
    charts to TensorBoard; the keys are listed in :mod:`lightning_unitrole.logs`. The scalars are in
    ``trainer.callback_metrics`` too, so that other callbacks can monitor them.

    Training is not disturbed: with and without the monitor a run ends with the same weights, bit for bit. A fault
    in the analysis is reported once as a warning and training goes on; a wrong setting is an error at the start.

    The images are the first ``images_per_class`` of each class. Training images are read through the training
    dataset, so its random augmentation is applied, with the same random numbers each time; pass ``train_data`` to look
    at images without augmentation.

    Works in ``pytorch_lightning.Trainer`` and in ``lightning.pytorch.Trainer``, in ``fit`` and ``validate``.

    Args:
        layers: ``"auto"`` for the last convolution of each resolution, ``"all"``, or names or glob patterns of
            convolutions.
        images_per_class: images of each class, at most, on either side.
        every_n_epochs: analyse the validation runs of every n-th epoch.
        criterion: how units are ranked: a name of :data:`lightning_unitrole.criteria.CRITERIA`, or a function.
        train_data: a ``DataLoader``, a ``Dataset`` or a list of batches to use instead of the trainer's training data.
        ablation_points: numbers of ablated units that a curve is measured at, about; 0 for no ablation and no roles.
        num_classes: number of classes; seen from the model's output when left out.
        class_names: a name for each class, in the order of their indices.
        max_birth: largest birth point that is told apart.
        max_density: share of the edges that enter the filtration.
        backend: topology backend: ``auto``, ``ripser``, ``torch``, ``numba`` or ``triton``.
        batch_fn: function from a batch to ``(inputs, targets)``. Without it, batches are tuples, lists or dicts.
        group_fn: function from targets to group indices, to group images by something other than their label.
        score_fn: function from outputs and targets to the loss and the score of each image.
        forward_fn: function from the LightningModule and the inputs to the logits, where calling the module does not
            give them.
        val_dataloader_idx: which of several validation loaders to analyse.
        compare_criteria: when to compare all criteria, draw their curves for TensorBoard and name a better criterion:
            ``"suspect"``, at the end of training, for the layers whose ranking is hardly better than a random order;
            ``"end"``, then for all layers; ``"every"``, in every epoch that is analysed; or ``"never"``.
        log_figures: draw ablation curves and role maps for TensorBoard.

    Attributes:
        report: the latest :class:`~lightning_unitrole.results.UnitReport`, or None.
        history: the earlier reports, oldest first.

    Raises:
        SettingError: if a setting is out of range, in the constructor, in ``setup`` or when training starts.

    Source: arXiv:2103.09716v1 (entropy, ablation), arXiv:2011.00789 (roles).

    Example:
        >>> trainer = pl.Trainer(callbacks=[UnitRoleMonitor(images_per_class=50)], logger=False)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        layers: str | Sequence[str] = "auto",
        images_per_class: int = 100,
        every_n_epochs: int = 1,
        criterion: str | Criterion = "feature_entropy",
        train_data: DataSource | None = None,
        ablation_points: int = 64,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        max_birth: int = 50,
        max_density: float = 0.8,
        backend: str = "auto",
        batch_fn: BatchFn | None = None,
        group_fn: GroupFn | None = None,
        score_fn: ScoreFn | None = None,
        forward_fn: ForwardFn | None = None,
        val_dataloader_idx: int = 0,
        compare_criteria: str = "suspect",
        log_figures: bool = True,
    ) -> None:
        super().__init__()
        self.settings = AnalysisSettings(
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
        if not isinstance(every_n_epochs, int) or every_n_epochs < 1:
            raise SettingError(f"every_n_epochs={every_n_epochs!r}; expected an integer of at least 1.")
        if compare_criteria not in _WHEN:
            raise SettingError(f"compare_criteria={compare_criteria!r}; expected one of {', '.join(_WHEN)}.")
        self.every_n_epochs = every_n_epochs
        self.train_data = train_data
        self.forward_fn = forward_fn
        self.val_dataloader_idx = val_dataloader_idx
        self.compare_criteria = compare_criteria
        self.report: UnitReport | None = None
        self.history: list[UnitReport] = []
        self._analysis: UnitAnalysis | None = None
        self._train_probe: Probe | None = None
        self._val_probe: Probe | None = None
        self._recording: LiveRecording | None = None
        self._due = False
        self._logs = ReportLogger(figures=log_figures)
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Distinct for monitors that differ in what they measure."""
        settings = self.settings
        return self._generate_state_key(
            layers=settings.layers,
            criterion=resolve_criterion(settings.criterion)[0],
            images_per_class=settings.images_per_class,
            every_n_epochs=self.every_n_epochs,
            val_dataloader_idx=self.val_dataloader_idx,
        )

    def state_dict(self) -> dict[str, Any]:
        """The reports so far, as tensors and strings alone."""
        reports = [*self.history, *([self.report] if self.report else [])]
        return {"version": STATE_VERSION, "reports": [report.state_dict() for report in reports]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the reports of a checkpoint.

        Raises:
            DataError: if a newer version of the package wrote it.
        """
        refuse_newer("The checkpoint holds a UnitRoleMonitor state of version", state_dict["version"], STATE_VERSION)
        reports = [UnitReport.from_state_dict(state) for state in state_dict["reports"]]
        self.report = reports[-1] if reports else None
        self.history = reports[:-1]

    def sibling(self, **settings: Any) -> UnitRoleMonitor:
        """A monitor of the same data with other settings, which has seen nothing yet and logs nothing.

        Args:
            settings: fields of :class:`~lightning_unitrole.analysis.AnalysisSettings`.
        """
        other = copy(self)
        other.settings = replace(self.settings, **settings)
        other.report, other.history = None, []
        other._logs, other._warned = ReportLogger(figures=False), set()
        other._recording, other._due = None, False
        other.forget_layers()
        return other

    def forget_layers(self) -> None:
        """Find the layers of the model again when they are next needed: call it when the model has changed."""
        self._stop_recording()
        self._analysis = self._train_probe = self._val_probe = None

    def prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[UnitAnalysis, Probe, Probe]:
        """The analysis of the model as it is, and its training and validation images.

        Raises:
            SettingError: if a setting does not fit the model, or there are no validation data.
        """
        analysis, train_probe = self._prepare(trainer, pl_module)
        return analysis, train_probe, analysis.probe(self._val_loader(trainer), name="validation")

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> UnitReport:
        """Analyse the model as it is now, outside of a validation epoch; nothing is kept or logged."""
        with torch.inference_mode(False):
            report = self._analyze(trainer, None)
        self._val_probe = None
        return report

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse names of layers that the model does not have."""
        layers = self.settings.layers
        names = [layers] if isinstance(layers, str) else list(layers)
        modules = dict(pl_module.named_modules())
        for name in names:
            if name not in ("auto", "all") and not set(name) & set("*?[") and module_of(name) not in modules:
                weighted = [key for key, module in modules.items() if getattr(module, "weight", None) is not None]
                convolutions = [key for key in weighted if modules[key].weight.ndim == 4]
                raise SettingError(
                    f"layers names {name!r}, which is not a module of {type(pl_module).__name__}. Its convolutions "
                    f"are: {', '.join(convolutions) or 'none'}."
                )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers now, so that a wrong setting fails before anything is trained."""
        if not any(trainer.num_val_batches):
            self._warn_once(_NOTHING_TO_VALIDATE, trainer)
        with self._going_on(trainer):
            self._prepare(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start tapping, where this epoch is analysed."""
        self._stop_recording()
        off_beat = trainer.state.fn == "fit" and (trainer.current_epoch + 1) % self.every_n_epochs != 0
        if trainer.sanity_checking or off_beat:
            return
        with self._going_on(trainer):
            analysis, train_probe = self._prepare(trainer, pl_module)
            loader = self._val_loader(trainer)
            self._due = True
            if is_sequential(loader, shards=trainer.world_size):
                self._recording = LiveRecording(analysis, train_probe.available(), loader)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say which images of the coming batch are recorded."""
        if self._recording is not None:
            with self._going_on(trainer):
                self._recording.expect(batch if dataloader_idx == self.val_dataloader_idx else None)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Analyse the training side, ablate, assign roles, log."""
        due, recording = self._due, self._recording
        self._stop_recording()
        if not due:
            return
        with self._going_on(trainer), torch.inference_mode(False):
            report = self._analyze(trainer, recording)
            before, self.report = self.report, report
            if before is not None:
                self.history.append(before)
            scalars = report_scalars(report, before=before)
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in scalars.items()})
            if trainer.is_global_zero:
                self._logs.log(report, trainer.loggers, before=before, removals=removals_of(trainer.lightning_module))
            if self.compare_criteria == "every":
                self._compare(trainer, list(report.layers))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so where the ranking turned out hardly better than a random order."""
        with self._going_on(trainer):
            self._question_ranking(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same after ``trainer.validate``."""
        if trainer.state.fn == "validate":
            with self._going_on(trainer), torch.inference_mode(False):
                self._question_ranking(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._stop_recording()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind, and no reference to the model and the data."""
        self.forget_layers()

    def _stop_recording(self) -> None:
        self._due = False
        if self._recording is not None:
            self._recording.stop()
            self._recording = None

    def _prepare(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[UnitAnalysis, Probe]:
        if self._analysis is None or self._train_probe is None:
            source = self.train_data if self.train_data is not None else _training_data(trainer, pl_module)
            runtime = _runtime(trainer, pl_module, self.forward_fn)
            with torch.inference_mode(False):
                batch = runtime.transfer(first_batch(as_batches(source, name="training"), name="training"))
                self._analysis = UnitAnalysis(pl_module, self.settings, runtime, batch)
            self._train_probe = self._analysis.probe(source, name="training")
        return self._analysis, self._train_probe

    def _val_loader(self, trainer: pl.Trainer) -> Any:
        loaders = _validation_data(trainer)
        if loaders is None:
            raise SettingError(_NOTHING_TO_VALIDATE)
        if not isinstance(loaders, (list, tuple)):
            loaders = [loaders]
        if self.val_dataloader_idx >= len(loaders):
            raise SettingError(
                f"val_dataloader_idx={self.val_dataloader_idx}, but there are {len(loaders)} validation loaders."
            )
        return loaders[self.val_dataloader_idx]

    def _analyze(self, trainer: pl.Trainer, recording: LiveRecording | None) -> UnitReport:
        analysis, train_probe = self._prepare(trainer, trainer.lightning_module)
        val_probe = analysis.probe(self._val_loader(trainer), name="validation")
        if recording is not None:
            recording.hand_over(val_probe)
        found = train_probe.available(), val_probe.available()
        quota = common_quota(*found)
        self._warn_once(
            shortage(*found, wanted=self.settings.images_per_class, class_names=analysis.class_names), trainer
        )
        recorders = analysis.record(val_probe, quota) if recording is None else recording.recorders
        val = analysis.statistics(recorders, val_probe, quota)
        train = analysis.statistics(analysis.record(train_probe, quota), train_probe, quota)
        report = analysis.report(
            train,
            val,
            train_probe=train_probe,
            val_probe=val_probe,
            quota=quota,
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
        )
        self._warn_once(non_finite_maps(report), trainer)
        self._val_probe = val_probe
        return report

    def _compare(self, trainer: pl.Trainer, layers: Sequence[str]) -> CriteriaComparison:
        if self._analysis is None or self._val_probe is None:
            raise SettingError("Criteria can be compared only after an epoch was analysed.")
        comparison = compare_on_probe(self._analysis, self._val_probe, layers=layers)
        self._val_probe.release()
        if trainer.is_global_zero:
            self._logs.log_comparison(comparison, trainer.loggers, step=trainer.global_step)
        return comparison

    def _question_ranking(self, trainer: pl.Trainer) -> None:
        if self.report is None or self._val_probe is None or self.compare_criteria == "never":
            return
        suspects = misleading_layers(self.report)
        layers = list(self.report.layers) if self.compare_criteria == "end" else suspects
        comparison = self._compare(trainer, layers) if layers else None
        if comparison is not None and suspects:
            self._warn_once(misleading_ranking(self.report, comparison.only(suspects)), trainer)

    def _warn_once(self, message: str | None, trainer: pl.Trainer) -> None:
        if message is not None and message not in self._warned:
            self._warned.add(message)
            if trainer.is_global_zero:
                warnings.warn(message, stacklevel=3)

    @contextmanager
    def _going_on(self, trainer: pl.Trainer) -> Iterator[None]:
        """Turn a fault of the analysis into a warning; a wrong setting stays an error."""
        try:
            yield
        except (SettingError, BackendError, Warning):
            raise
        except Exception as error:
            self._stop_recording()
            _log.debug("The analysis failed.", exc_info=error)
            self._warn_once(f"Unit roles could not be analysed, and training goes on. {_in_words(error)}", trainer)


def _in_words(error: Exception) -> str:
    if isinstance(error, UnitRoleError):
        return str(error)
    return f"{type(error).__name__}: {error}. The logger {__name__!r} tells more at level DEBUG."


def _validation_data(trainer: Any) -> Any:
    """The trainer's validation data, also before Lightning has looked at them."""
    if trainer.val_dataloaders is None and trainer.state.fn == "fit" and trainer.enable_validation:
        # Without a sanity check that is so until the first epoch that validates.
        stage = trainer.state.stage
        trainer.validating = True
        try:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
        finally:
            trainer.state.stage = stage
    return trainer.val_dataloaders


def _training_data(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """The trainer's training data, or what ``fit`` would use where it has not been called."""
    source = trainer.train_dataloader
    if source is None:
        for owner in (getattr(trainer, "datamodule", None), pl_module):
            if owner is not None and is_overridden("train_dataloader", owner):
                source = owner.train_dataloader()
                break
    if isinstance(source, (DataLoader, Dataset)) or (
        isinstance(source, Iterable) and not isinstance(source, _COLLECTIONS)
    ):
        return source
    found = "none" if source is None else f"a {type(source).__name__}, not one data loader"
    raise SettingError(
        f"UnitRoleMonitor needs training images, and the trainer's training data are {found}. Pass train_data=, a "
        "DataLoader, a Dataset or a list of batches."
    )


def _runtime(trainer: pl.Trainer, pl_module: pl.LightningModule, forward_fn: ForwardFn | None) -> Runtime:
    precision, strategy = trainer.precision_plugin, trainer.strategy

    def forward(inputs: Any) -> Any:
        with precision.forward_context():
            return pl_module(inputs) if forward_fn is None else forward_fn(pl_module, inputs)

    def transfer(batch: Any) -> Any:
        return strategy.batch_to_device(precision.convert_input(batch), dataloader_idx=0)

    def total(values: Tensor) -> Tensor:
        on_device = values.to(pl_module.device, copy=True)
        torch.distributed.all_reduce(on_device)
        return on_device

    def gather(values: Tensor) -> Tensor:
        gathered = strategy.all_gather(values)
        return gathered if isinstance(gathered, Tensor) else torch.stack(gathered)

    single = trainer.world_size == 1
    return Runtime(
        forward=forward,
        transfer=transfer,
        device=pl_module.device,
        reduce=None if single else total,
        **({} if single else {"gather": gather}),
        shard=trainer.global_rank,
        shards=trainer.world_size,
        progress=partial(trainer_progress, trainer),
    )
