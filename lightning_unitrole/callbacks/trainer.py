"""What a Lightning trainer knows: its data, how it runs the module, and its other processes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader, rank_zero_info
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_unitrole.analysis.options import AnalysisOptions
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.callbacks.faults import ask_peers
from lightning_unitrole.callbacks.progress import trainer_progress
from lightning_unitrole.callbacks.step import StepReading, read_step
from lightning_unitrole.data.batches import split_batch
from lightning_unitrole.data.loaders import DataSource, as_batches, check_readable, class_names_behind, first_batch
from lightning_unitrole.data.mixing import unmixed
from lightning_unitrole.data.probe import Probe
from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.tracing import module_of
from lightning_unitrole.reports.report import UnitReport

ForwardFn = Callable[[Any, Any], Any]
"""From the LightningModule and the inputs of a batch to the logits."""

NOTHING_TO_VALIDATE = (
    "There is no validation batch, so UnitRoleMonitor has nothing to analyse. Pass validation data to fit; if you do, "
    "check that they are not empty and that limit_val_batches is not 0."
)
_NO_LOGITS = (
    "Where the outputs are no logits, as with a contrastive loss, pass score_fn= too, a function from the outputs and "
    "the targets to the loss and the score of each image, with num_classes=, the number of different labels."
)
_TOLD_BY = 64
"""Training images by which the task is told where two do not suffice."""
_COLLECTIONS = (list, tuple, dict, CombinedLoader)


class TrainerRunner(Runner):
    """Runs a LightningModule as its trainer does: precision, device and processes are the trainer's.

    Several processes use it inside of :func:`~lightning_unitrole.callbacks.faults.together`.

    Args:
        trainer: the trainer.
        pl_module: the module.
        forward_fn: called with the module and the inputs instead of the module.
    """

    forward_argument = "forward_fn="

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, forward_fn: ForwardFn | None = None) -> None:
        forward = pl_module if forward_fn is None else partial(forward_fn, pl_module)
        super().__init__(pl_module, forward=forward, progress=partial(trainer_progress, trainer))
        self._trainer = trainer
        self.shard, self.shards = trainer.global_rank, trainer.world_size

    @property
    def device(self) -> torch.device:
        """Where the trainer put the module."""
        return self._trainer.lightning_module.device

    def forward(self, inputs: Any) -> Any:
        """What the module makes of the inputs, in the trainer's precision."""
        with self._trainer.precision_plugin.forward_context():
            return self._forward(inputs)

    def transfer(self, batch: Any) -> Any:
        """The batch, as the trainer hands it to a step."""
        trainer = self._trainer
        return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over processes."""
        if self.shards == 1:
            return values
        ask_peers(self._trainer)
        on_device = values.to(self.device, copy=True)
        torch.distributed.all_reduce(on_device)
        return on_device

    def gather(self, values: Tensor) -> Tensor:
        """``values`` ``[B]`` of every process as ``[processes, B]``."""
        if self.shards == 1:
            return values.unsqueeze(0)
        ask_peers(self._trainer)
        gathered = self._trainer.strategy.all_gather(values)
        return gathered if isinstance(gathered, Tensor) else torch.stack(gathered)


def validation_data(trainer: Any, index: int) -> Any:
    """One of the trainer's validation loaders, also before Lightning has looked at them.

    Raises:
        SettingError: if there are none, or not as many.
    """
    loaders = validation_loaders(trainer)
    if not loaders:
        raise SettingError(NOTHING_TO_VALIDATE)
    if index >= len(loaders):
        raise SettingError(
            f"val_dataloader_idx={index}, but there {'is' if len(loaders) == 1 else 'are'} {len(loaders)} validation "
            f"loader{'' if len(loaders) == 1 else 's'}; expected a number from 0 to {len(loaders) - 1}."
        )
    return loaders[index]


def validation_loaders(trainer: Any) -> list[Any]:
    """The trainer's validation loaders; empty where there are none."""
    if trainer.val_dataloaders is None and trainer.state.fn == "fit" and trainer.enable_validation:
        # Without a sanity check that is so until the first epoch that validates.
        stage = trainer.state.stage
        trainer.validating = True
        try:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
        finally:
            trainer.state.stage = stage
    loaders = trainer.val_dataloaders
    if loaders is None:
        return []
    return list(_flattened(loaders))


def _flattened(loaders: Any) -> Iterator[Any]:
    """Loaders in nested lists and dicts, in the order of Lightning's ``dataloader_idx``."""
    if isinstance(loaders, CombinedLoader):
        yield from loaders.flattened
    elif isinstance(loaders, Mapping):
        for one in loaders.values():
            yield from _flattened(one)
    elif isinstance(loaders, (list, tuple)):
        for one in loaders:
            yield from _flattened(one)
    else:
        yield loaders


def training_data(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
    """The trainer's training data, or what ``fit`` would use where it has not been called.

    Raises:
        SettingError: if there are none, or they are not one data loader.
    """
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


class TrainerAnalysis:
    """The analysis of a trainer's model: made when it is first needed, and again when the model has changed.

    Args:
        options: what to analyse and how.
        train_data: used instead of the trainer's training data.
        forward_fn: called with the module and the inputs instead of the module.
        val_dataloader_idx: which of several validation loaders to use.
    """

    def __init__(
        self,
        options: AnalysisOptions,
        *,
        train_data: DataSource | None = None,
        forward_fn: ForwardFn | None = None,
        val_dataloader_idx: int = 0,
    ) -> None:
        self.options = options
        self._train_data, self._forward_fn, self._val_index = train_data, forward_fn, val_dataloader_idx
        self._session: AnalysisSession | None = None
        self._train_probe: Probe | None = None
        self._checked = False
        self._announced: list[str] = []
        self._seen: weakref.ref[Any] | None = None

    def session(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> AnalysisSession:
        """The session of the model as it is.

        Raises:
            SettingError: if a setting does not fit the model or the data.
        """
        if self._session is None:
            source = self._training_source(trainer, pl_module)
            runner, options = TrainerRunner(trainer, pl_module, self._forward_fn), self.options
            if not self._checked:
                # Only now: what is found unreadable later is a fault, which must not end the training.
                self._checked = True
                for loader in validation_loaders(trainer)[self._val_index :][:1]:
                    check_readable(loader, name="validation")
            batch = first_batch(as_batches(source, name="training"), name="training")
            with torch.inference_mode(False):
                with runner.undisturbed(parameters=True):  # both run code of the user's
                    batch = runner.transfer(batch)
                    reading = self._read_step(pl_module, batch)
                if isinstance(reading, StepReading):
                    runner = TrainerRunner(trainer, pl_module, lambda module, batch: reading.forward(batch))
                    options = reading.options(options)
                more = partial(first_batch, as_batches(source, name="training"), name="training", size=_TOLD_BY)
                names = class_names_behind(source)
                try:
                    self._session = AnalysisSession(runner, options, batch, names, more=more)
                except DataError as error:
                    if isinstance(reading, str):
                        raise DataError(f"{reading} {error} {_NO_LOGITS}") from error
                    raise
                source = unmixed(source, batch, partial(split_batch, batch_fn=options.batch_fn))
            self._train_probe = self._session.probe(source, name="training")
            self._announce(self._session.task)
            if isinstance(reading, str):
                self._announce(_taken_for_logits(reading, self._session))
        return self._session

    def _announce(self, line: str | None) -> None:
        if line is not None and line not in self._announced:
            self._announced.append(line)
            rank_zero_info(line)

    def _training_source(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> DataSource:
        if self._train_data is not None:
            return self._train_data
        seen = None if self._seen is None or trainer.state.fn == "fit" else self._seen()
        source: DataSource = training_data(trainer, pl_module) if seen is None else seen
        self._seen = weakref.ref(source) if isinstance(source, (DataLoader, Dataset)) else None
        return source

    def _read_step(self, pl_module: pl.LightningModule, batch: Any) -> StepReading | str | None:
        options = self.options
        if self._forward_fn is not None or options.batch_fn is not None or options.score_fn is not None:
            return None
        return read_step(pl_module, batch, dataloader_idx=self._val_index)

    def train_probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Probe:
        """The training images; which they are is found out once."""
        self.session(trainer, pl_module)
        assert self._train_probe is not None
        return self._train_probe

    def val_loader(self, trainer: pl.Trainer) -> Any:
        """The validation loader whose images are used."""
        return validation_data(trainer, self._val_index)

    def val_probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Probe:
        """The validation images, and more of them to measure curves on."""
        loader = self.val_loader(trainer)
        return self.session(trainer, pl_module).probe(loader, name="validation", held_out=True)

    def report(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> UnitReport:
        """Analyse the model as it is now; nothing is kept or logged."""
        with torch.inference_mode(False):
            session = self.session(trainer, pl_module)
            probes = self.train_probe(trainer, pl_module), self.val_probe(trainer, pl_module)
            return session.report(
                session.samples(*probes), epoch=trainer.current_epoch, global_step=trainer.global_step
            )

    def after(self, before: TrainerAnalysis) -> TrainerAnalysis:
        """This, in another run of the trainer, which may need the training data of the one before if they live."""
        self._seen = before._seen
        return self

    def forget(self) -> None:
        """Find the layers again when they are next needed: the model or the data have changed."""
        self._session = self._train_probe = None


def _taken_for_logits(reading: str, session: AnalysisSession) -> str | None:
    """What is taken for granted where nothing is known of the loss; None where the user or the task says more."""
    if session.options.score_fn is not None:
        return None
    return (
        f"Unit roles: {reading} What the module returns is taken for the logits of {session.num_classes} classes. Pass "
        "score_fn= if it is not."
    )


def check_layer_names(layers: str | Sequence[str], module: nn.Module) -> None:
    """Refuse names that no module has; patterns may match nothing.

    Raises:
        SettingError: if a name is not a module of ``module``.
    """
    modules = dict(module.named_modules())
    for name in [layers] if isinstance(layers, str) else layers:
        if name not in ("auto", "all") and not set(name) & set("*?[") and module_of(name) not in modules:
            weights = {key: getattr(one, "weight", None) for key, one in modules.items()}
            found = [key for key, one in weights.items() if isinstance(one, Tensor) and one.ndim == 4]
            raise SettingError(
                f"layers names {name!r}, which is not a module of {type(module).__name__}. Its convolutions are: "
                f"{', '.join(found) or 'none'}."
            )
