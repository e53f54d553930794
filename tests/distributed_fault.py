"""Trains in two processes, one of which fails somewhere: ``distributed_fault.py PLACE FOLDER``."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from support import Digits, digits, make_trainer
from torch.utils.data import DataLoader

from lightning_unitrole.analysis.observer import Observer
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.analysis.stream import LiveRecording
from lightning_unitrole.callbacks import UnitPruning, UnitRoleMonitor, pruner
from lightning_unitrole.loggers.tensorboard import ReportLogger

PLACES: dict[str, tuple[Any, str]] = {
    "start": (AnalysisSession, "__init__"),
    "recording": (LiveRecording, "expect"),
    "measuring": (Observer, "measure"),
    "logging": (ReportLogger, "log"),
    "choosing": (pruner, "choose"),
    "removing": (pruner, "carry_over"),
    "masking": (pruner, "UnitMask"),
}
FIRST = 1
"""The epoch in which the pruning fails."""


def main(place: str, folder: str) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(1)
    roles = "turning_point" if place == "recording" else "contribution"
    monitor = UnitRoleMonitor(
        images_per_class=9, ablation_points=6, train_data=digits(301), every_n_epochs=1, roles=roles
    )
    owner, name = PLACES[place]
    pruning = UnitPruning(
        amount=0.3, choose_by="taylor", start_epoch=FIRST, mode="mask" if place == "masking" else "remove"
    )
    callback, broken = (pruning, FIRST) if owner is pruner else (monitor, 0)
    trainer = make_trainer(callback, max_epochs=3, devices=2, strategy="ddp")
    failing = 0 if place == "logging" else 1
    whole = getattr(owner, name)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if trainer.global_rank == failing and trainer.current_epoch == broken and not trainer.sanity_checking:
            raise RuntimeError("on purpose")
        return whole(*args, **kwargs)

    setattr(owner, name, fail)
    model = Digits()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model, DataLoader(digits(64), batch_size=16), DataLoader(digits(153, start=301), batch_size=16))
    assert callback.report is not None
    found = {
        "said": [str(one.message) for one in caught if "training goes on" in str(one.message)],
        "epoch": monitor.report.epoch if monitor.report is not None else pruning.report.steps[0].epoch,
        "weights": dict(model.named_parameters()),
    }
    torch.save(found, Path(folder) / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
