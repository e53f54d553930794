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
from lightning_unitrole.callbacks import UnitRoleMonitor
from lightning_unitrole.loggers.tensorboard import ReportLogger

PLACES: dict[str, tuple[type, str]] = {
    "start": (AnalysisSession, "__init__"),
    "recording": (LiveRecording, "expect"),
    "measuring": (Observer, "measure"),
    "logging": (ReportLogger, "log"),
}


def main(place: str, folder: str) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    monitor = UnitRoleMonitor(images_per_class=9, ablation_points=6, train_data=digits(301), every_n_epochs=1)
    if place == "recording":
        monitor = UnitRoleMonitor(
            images_per_class=9, ablation_points=6, train_data=digits(301), every_n_epochs=1, roles="turning_point"
        )
    trainer = make_trainer(monitor, max_epochs=2, devices=2, strategy="ddp")
    failing = 0 if place == "logging" else 1
    owner, name = PLACES[place]
    whole = getattr(owner, name)

    def fail(*args: Any, **kwargs: Any) -> Any:
        if trainer.global_rank == failing and trainer.current_epoch == 0 and not trainer.sanity_checking:
            raise RuntimeError("on purpose")
        return whole(*args, **kwargs)

    setattr(owner, name, fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Digits(), DataLoader(digits(64), batch_size=16), DataLoader(digits(153, start=301), batch_size=16))
    said = [str(one.message) for one in caught if "training goes on" in str(one.message)]
    epoch = None if monitor.report is None else monitor.report.epoch
    torch.save({"said": said, "epoch": epoch}, Path(folder) / f"{place}_{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
