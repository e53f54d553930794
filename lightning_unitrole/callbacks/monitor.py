"""The callback that watches units."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from lightning_unitrole.analysis.advice import (
    announcement,
    left_out_images,
    misleading_layers,
    misleading_ranking,
    non_finite_maps,
    shortage,
    turning_gaps,
    unreliable_roles,
)
from lightning_unitrole.analysis.options import (
    AnalysisOptions,
    Auto,
    check_callable,
    check_choice,
    check_name,
    options_of,
)
from lightning_unitrole.analysis.stream import LiveRecording
from lightning_unitrole.callbacks.faults import Faults
from lightning_unitrole.callbacks.keeping import KeepsReports
from lightning_unitrole.callbacks.pace import Pace, Turns
from lightning_unitrole.callbacks.surroundings import (
    averages_at_the_end,
    checksum,
    epochs_of,
    images_of_an_epoch,
    is_waited_for,
    no_report,
    refuse_split_parameters,
    same_name,
    setting_name,
    stand_before_averaging,
    warn_of_former_keys,
)
from lightning_unitrole.callbacks.trainer import NOTHING_TO_VALIDATE, ForwardFn, TrainerAnalysis, check_layer_names
from lightning_unitrole.data.loaders import DataSource, is_sequential
from lightning_unitrole.data.sample import Samples
from lightning_unitrole.errors import BackendError, SettingError, refuse_newer
from lightning_unitrole.loggers.scalars import report_scalars, under_name
from lightning_unitrole.loggers.tensorboard import ReportLogger, is_tensorboard
from lightning_unitrole.network.isolation import is_lazy
from lightning_unitrole.pruning.history import kept_channels, original_widths, removals_of
from lightning_unitrole.ranking.criteria import CRITERIA
from lightning_unitrole.reports.curves import CriteriaComparison
from lightning_unitrole.reports.report import UnitReport

STATE_VERSION = 2

_log = logging.getLogger(__name__)

When = Literal["never", "suspect", "end", "every"]


@dataclass(kw_only=True, eq=False, repr=False)
class UnitRoleMonitor(KeepsReports, AnalysisOptions, pl.Callback):
    """Shows, while a network trains, what each of its units is good for.

    At the end of the validation epochs that it analyses, the monitor looks at the same number of training and of
    validation images of each class: it keeps histograms of the birth points of the units' maps, ranks the units of each
    layer, measures what each of them contributes to the network's answers, switches them off one after another, and
    sorts them into the four roles of :class:`~lightning_unitrole.reports.roles.UnitRole`. Scalars go to every logger of
    the trainer, figures and charts to TensorBoard; the keys are listed in :mod:`lightning_unitrole.loggers.scalars`.
    The scalars are in ``trainer.callback_metrics`` too, so that other callbacks can monitor them.

    Training is not disturbed: with and without the monitor a run ends with the same weights, bit for bit. A fault
    in the analysis is reported once as a warning and training goes on; a wrong setting is an error at the start.

    The images are the first ``images_per_class`` of each class. Training images are read through the training
    dataset, so its random augmentation is applied, with the same random numbers each time; pass ``train_data`` to look
    at images without augmentation.

    Works in ``fit`` and ``validate`` of ``pytorch_lightning.Trainer`` and, since 2.6, ``lightning.pytorch.Trainer``.

    Attributes:
        every_n_epochs: analyse the validation runs of every n-th epoch. ``"auto"`` analyses the first and the last
            epoch, and as many between them as ``budget`` allows.
        budget: share of the training time that analyses may take, with ``every_n_epochs="auto"``.
        train_data: a ``DataLoader``, a ``Dataset`` or a list of batches to use instead of the trainer's training data.
        forward_fn: function from the LightningModule and the inputs to the logits, where calling the module does not
            give them.
        val_dataloader_idx: which of several validation loaders to analyse.
        compare_criteria: when to compare all criteria, draw their curves for TensorBoard and name a better criterion:
            ``"suspect"``, at the end of training, for the layers whose ranking is no better than a random order;
            ``"end"``, then for all layers; ``"every"``, in every epoch that is analysed; or ``"never"``.
        log_figures: draw ablation curves and role maps for TensorBoard.
        log_images: log small pictures of what each unit contributes and responds to most, for the tab "Unit roles": a
            megabyte an analysis and 8 MB a run at most; where the inputs are images, with roles by contribution.
        name: tells one monitor from another in the same training: it stands in the keys of the scalars, and names a
            TensorBoard run of its own for figures and the tab.
        report: the latest :class:`~lightning_unitrole.reports.report.UnitReport`, or None.
        history: the earlier reports of this run, oldest first, as far as they take less than 64 MiB. A checkpoint holds
            the latest roles alone.

    Raises:
        SettingError: if a setting is out of range, in the constructor, in ``setup`` or when training starts.

    Source: arXiv:2103.09716v1 (entropy, ablation), arXiv:2011.00789 (roles).

    Example:
        >>> trainer = pl.Trainer(callbacks=[UnitRoleMonitor(images_per_class=50)], logger=False)  # doctest: +SKIP
    """

    every_n_epochs: int | Auto = "auto"
    budget: float = 0.1
    train_data: DataSource | None = None
    forward_fn: ForwardFn | None = None
    val_dataloader_idx: int = 0
    compare_criteria: When = "never"
    log_figures: bool = True
    log_images: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every_n_epochs != "auto" and (not isinstance(self.every_n_epochs, int) or self.every_n_epochs < 1):
            raise SettingError(f"every_n_epochs={self.every_n_epochs!r}; expected an integer of at least 1, or 'auto'.")
        if not isinstance(self.budget, (int, float)) or not self.budget > 0:
            raise SettingError(f"budget={self.budget!r}; expected a number above 0, a share of the training time.")
        if not isinstance(self.val_dataloader_idx, int) or self.val_dataloader_idx < 0:
            raise SettingError(f"val_dataloader_idx={self.val_dataloader_idx!r}; expected an integer of at least 0.")
        check_choice("compare_criteria", self.compare_criteria, get_args(When))
        check_callable("forward_fn", self.forward_fn)
        check_name(self.name)
        self._analysis = self._make_analysis()
        KeepsReports.__init__(self)
        self._turns = Turns()
        self._weights = math.nan
        self._pace = Pace(self.budget)
        self._samples: Samples | None = None
        self._recording: LiveRecording | None = None
        self._due = False
        self._logs = ReportLogger(figures=self.log_figures, name=self.name)
        self._before: Mapping[str, Tensor] = {}
        self._faults = Faults(_log, self._stop_recording)

    @property
    def settings(self) -> AnalysisOptions:
        """What is analysed and how."""
        return options_of(self)

    def _make_analysis(self) -> TrainerAnalysis:
        idx = self.val_dataloader_idx
        return TrainerAnalysis(
            self.settings, train_data=self.train_data, forward_fn=self.forward_fn, val_dataloader_idx=idx
        )

    @property
    def state_key(self) -> str:
        """Distinct for monitors that differ in any setting."""
        return self._generate_state_key(
            **{
                one.name: setting_name(getattr(self, one.name))
                for one in fields(self)
                if one.name != "task" or self.task
            }
        )

    def state_dict(self) -> dict[str, Any]:
        """The latest roles, as tensors and strings alone: what the next report is compared with."""
        return {"version": STATE_VERSION, "roles": dict(self._before)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the roles of a checkpoint.

        Raises:
            DataError: if a newer version of the package wrote it.
        """
        refuse_newer("The checkpoint holds a UnitRoleMonitor state of version", state_dict["version"], STATE_VERSION)
        if state_dict["version"] == 1:
            reports = [UnitReport.from_state_dict(state) for state in state_dict["reports"][-1:]]
            self._before = {name: layer.roles for one in reports for name, layer in one.layers.items()}
        else:
            self._before = dict(state_dict["roles"])

    def forget_layers(self) -> None:
        """Find the layers of the model again when they are next needed: call it when the model has changed."""
        self._stop_recording()
        self._analysis.forget()
        self._samples = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse names of layers that the model does not have."""
        check_layer_names(self.layers, pl_module)
        refuse_split_parameters(trainer)
        stand_before_averaging(self, trainer)
        self._faults.warn(same_name(self, trainer), trainer)
        self._analysis = self._make_analysis().after(self._analysis)
        # Another model or another fit; a checkpoint's state is loaded after this.
        if self.is_of_another(pl_module) or (stage == "fit" and trainer.current_epoch == 0):
            self.forget_reports()
            self._before = {}
            self._logs = ReportLogger(figures=self.log_figures, name=self.name)
            self._pace.forget()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the layers now, so that a wrong setting fails before anything is trained."""
        if not any(trainer.num_val_batches):
            self._faults.warn(NOTHING_TO_VALIDATE, trainer)
        else:
            self._analysis.val_loader(trainer)
        warn_of_former_keys(trainer)
        self._turns.start(trainer.current_epoch)
        self._pace.start(trainer.current_epoch)
        if is_lazy(pl_module):
            return  # until the training has made its parameters
        with self._going_on(trainer):
            session = self._analysis.session(trainer, pl_module)
            rank_zero_info(announcement(session, images_of_an_epoch(trainer)))

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start tapping, where this epoch is analysed."""
        self._stop_recording()
        if trainer.sanity_checking or not self._is_due(trainer):
            return
        with self._going_on(trainer):
            session = self._analysis.session(trainer, pl_module)
            loader = self._analysis.val_loader(trainer)
            self._due = True
            # Contributions need a pass of their own over the images, which records them too.
            if not session.roles_by_contribution and is_sequential(loader, shards=trainer.world_size):
                available = self._analysis.train_probe(trainer, pl_module).available()
                self._recording = LiveRecording(session, available, loader)

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
        """Look at both sides, ablate, assign roles, log."""
        due, recording = self._due, self._recording
        self._stop_recording()
        if due:
            self._analyse(trainer, pl_module, recording)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Analyse the network as it ends, and say so where the ranking turned out no better than a random order."""
        if not averages_at_the_end(trainer):
            self._finish(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, of a network that averaging has given its last weights by now."""
        if averages_at_the_end(trainer):
            self._finish(trainer, pl_module)

    def _finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        report = self.report
        if self.every_n_epochs == "auto" and report is not None:
            other_weights = averages_at_the_end(trainer) and self._weights != checksum(pl_module)
            if other_weights or report.global_step != trainer.global_step:
                self._analyse(trainer, pl_module, None)
        with self._going_on(trainer):
            self._question_ranking(trainer)
        if report is None and not self._faults:
            rank_zero_info(no_report(trainer, self.every_n_epochs))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Question the ranking after ``trainer.validate`` too."""
        if trainer.state.fn == "validate":
            with self._going_on(trainer), torch.inference_mode(False):
                self._question_ranking(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._stop_recording()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no hook behind, and no reference to the model and the data."""
        self.forget_layers()
        if trainer.is_global_zero:
            self.leave_reports()

    def _stop_recording(self) -> None:
        self._due = False
        if self._recording is not None:
            self._recording.stop()
            self._recording = None

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if trainer.state.fn != "fit":
            return True
        epoch = trainer.current_epoch
        if self.report is None and is_waited_for(trainer):
            return True
        if isinstance(self.every_n_epochs, int):
            return self._turns.due(epoch, self.every_n_epochs)
        due = self._pace.due(epoch, epochs_of(trainer))
        # Clocks differ from process to process, and all have to do the same.
        return bool(trainer.strategy.broadcast(due))

    def _analyse(self, trainer: pl.Trainer, pl_module: pl.LightningModule, recording: LiveRecording | None) -> None:
        first = self._pace.analysis is None
        with self._going_on(trainer), torch.inference_mode(False):
            with self._pace.analysing(trainer.current_epoch):
                report = self._make_report(trainer, pl_module, recording)
                self._log_report(trainer, report)
            if first and trainer.state.fn == "fit" and self.every_n_epochs == "auto":
                rank_zero_info(self._pace.in_words(trainer.current_epoch, epochs_of(trainer)))
            if self.compare_criteria == "every":
                self._compare(trainer)

    def _make_report(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, recording: LiveRecording | None
    ) -> UnitReport:
        analysis = self._analysis
        session, train_probe = analysis.session(trainer, pl_module), analysis.train_probe(trainer, pl_module)
        val_probe = analysis.val_probe(trainer, pl_module)
        if recording is not None:
            recording.hand_over(val_probe)
        self._samples = session.samples(train_probe, val_probe)
        found = train_probe.available(), val_probe.available()
        self._faults.warn(shortage(*found, wanted=session.images_per_class, class_names=session.class_names), trainer)
        report = session.report(
            self._samples,
            recorders=None if recording is None else recording.recorders,
            examples=self.log_images and any(map(is_tensorboard, trainer.loggers)),
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
        )
        self._faults.warn(non_finite_maps(report), trainer)
        self._faults.warn(left_out_images(report), trainer)
        self._faults.warn(turning_gaps(report), trainer)
        return report

    def _log_report(self, trainer: pl.Trainer, report: UnitReport) -> None:
        self.keep(report)
        before, self._weights = self._before, checksum(trainer.lightning_module)
        self._before = {name: layer.roles for name, layer in report.layers.items()}
        named = replace(report, layers=under_name(self.name, report.layers))
        scalars = report_scalars(named, before=under_name(self.name, before), former=True)
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in scalars.items()})
        if trainer.is_global_zero:
            removals = removals_of(trainer.lightning_module)
            self._logs.log(
                report,
                trainer.loggers,
                before=before,
                kept=kept_channels(removals),
                original_units=original_widths(removals),
                on_fault=partial(self._faults.not_logged, trainer),
            )

    def _compare(self, trainer: pl.Trainer, layers: list[str] | None = None) -> CriteriaComparison:
        if self._samples is None or self.report is None:
            raise SettingError("Criteria can be compared only after an epoch was analysed.")
        session = self._analysis.session(trainer, trainer.lightning_module)
        comparison = session.compare(self._samples.val, tuple(CRITERIA), layers=layers)
        if trainer.is_global_zero:
            self._logs.log_comparison(
                comparison,
                trainer.loggers,
                step=trainer.global_step,
                on_fault=partial(self._faults.not_logged, trainer),
            )
        return comparison

    def _question_ranking(self, trainer: pl.Trainer) -> None:
        if self.report is None or self._samples is None:
            return
        if message := unreliable_roles(self.report):
            rank_zero_info(message)
        suspects = misleading_layers(self.report)
        comparison = None
        if self.compare_criteria == "end":
            comparison = self._compare(trainer)
        elif self.compare_criteria == "suspect" and suspects:
            comparison = self._compare(trainer, suspects)
        if suspects and self.compare_criteria != "never":
            only = None if comparison is None else comparison.only(suspects)
            self._faults.warn(misleading_ranking(self.report, suspects, only), trainer)

    def _going_on(self, trainer: pl.Trainer) -> AbstractContextManager[None]:
        """Turn a fault of the analysis into a warning; a wrong setting stays an error."""
        return self._faults.outlived(trainer, "Unit roles could not be analysed", passed=(SettingError, BackendError))
