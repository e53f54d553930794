"""The pipeline without a Trainer: one call each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from lightning_unitrole.analysis.advice import left_out_images, non_finite_maps, shortage, turning_gaps
from lightning_unitrole.analysis.options import AnalysisOptions, make_options, takes_options
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.data.loaders import DataSource, as_batches, class_names_behind, first_batch
from lightning_unitrole.network.runner import Forward, Progress, Runner, no_progress
from lightning_unitrole.ranking.criteria import CRITERIA, Criterion, resolve_criterion
from lightning_unitrole.reports.curves import CriteriaComparison
from lightning_unitrole.reports.report import UnitReport

_log = logging.getLogger(__name__)


@takes_options
def analyze(
    model: nn.Module,
    train_data: DataSource,
    val_data: DataSource,
    *,
    forward: Forward | None = None,
    progress: Progress = no_progress,
    epoch: int = 0,
    global_step: int = 0,
    **options: Any,
) -> UnitReport:
    """What each unit of a model is good for: the monitor's analysis, without a Trainer.

    The model runs where its parameters lie, in evaluation mode; its modes, buffers and all random states are left as
    they were. The images used are the first ``images_per_class`` of each class, the same number on both sides.

    Args:
        model: maps the inputs of a batch to logits ``[images, classes]``, or to a structure with them: named
            ``"logits"`` or ``"out"``, or the only outputs that no other is computed from.
        train_data: a ``DataLoader``, a ``Dataset`` or a list of batches.
        val_data: the same.
        forward: called with the inputs instead of ``model``; such as ``lambda inputs: model(inputs)["scores"]`` where
            it cannot be told which outputs are the logits.
        progress: progress bar, see :class:`~lightning_unitrole.network.runner.Runner`.
        epoch: where training stands, for the report and those who log it.
        global_step: optimizer steps taken so far, likewise.
        **options: see :class:`~lightning_unitrole.analysis.options.AnalysisOptions`.

    Raises:
        SettingError: if a setting is out of range or a layer unknown.
        DataError: if the data do not fit, or it cannot be told which outputs are the logits; the message says what was
            found and what was expected.

    Source: arXiv:2103.09716v1 (entropy, ablation), arXiv:2011.00789 (roles).
    """
    runner = Runner(model, forward=forward, progress=progress)
    session = _start(runner, train_data, make_options(options, caller="analyze"), name="training")
    train, val = session.probe(train_data, name="training"), session.probe(val_data, name="validation", held_out=True)
    samples = session.samples(train, val)
    _warn(
        shortage(train.available(), val.available(), wanted=session.images_per_class, class_names=session.class_names)
    )
    report = session.report(samples, epoch=epoch, global_step=global_step)
    _warn(non_finite_maps(report))
    _warn(left_out_images(report))
    _warn(turning_gaps(report))
    return report


@takes_options
def compare_criteria(
    model: nn.Module,
    data: DataSource,
    *,
    criteria: Sequence[str | Criterion] = tuple(CRITERIA),
    forward: Forward | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> CriteriaComparison:
    """Rank the units of each layer by every criterion, ablate them in that order and in its reverse, and compare.

    No criterion is right for every network: ask this before trusting one.

    Args:
        model: maps the inputs of a batch to logits ``[images, classes]``.
        data: a ``DataLoader``, a ``Dataset`` or a list of batches; validation images are the ones to ask.
        criteria: names of :data:`lightning_unitrole.ranking.criteria.CRITERIA`, or functions.
        forward: called with the inputs instead of ``model``.
        progress: progress bar, see :class:`~lightning_unitrole.network.runner.Runner`.
        **options: see :class:`~lightning_unitrole.analysis.options.AnalysisOptions`; curves have 32 points by default.

    Raises:
        SettingError: if a setting is out of range, a layer or a criterion unknown.
        DataError: if the data do not fit.
    """
    for criterion in criteria:
        resolve_criterion(criterion)
    chosen = make_options({"ablation_points": 32, **options}, caller="compare_criteria")
    session = _start(Runner(model, forward=forward, progress=progress), data, chosen, name="comparison")
    return session.compare(session.sample(session.probe(data, name="comparison")), criteria)


def _start(runner: Runner, data: DataSource, options: AnalysisOptions, *, name: str) -> AnalysisSession:
    """A session with its layers found on the first images of ``data``."""
    batches = as_batches(data, name=name)
    batch = runner.transfer(first_batch(batches, name=name))
    more = partial(first_batch, batches, name=name, size=64)
    session = AnalysisSession(runner, options, batch, class_names_behind(data), more=more)
    if session.task is not None:
        _log.info(session.task)
    return session


def _warn(message: str | None) -> None:
    if message is not None:
        warnings.warn(message, stacklevel=3)
