"""Validates fixed weights in some processes and saves the report: ``distributed_validate.py PROCESSES REPORT``."""

import sys
import warnings

import pytorch_lightning as pl
import torch
from support import Digits, digits, make_trainer
from torch.utils.data import DataLoader

from lightning_unitrole.callbacks import UnitRoleMonitor


def main(processes: int, path: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(1, verbose=False)
    model = Digits()
    monitor = UnitRoleMonitor(
        images_per_class=9, ablation_points=6, train_data=digits(301), backend="torch", criterion="mean_activation"
    )
    trainer = make_trainer(monitor, devices=processes, strategy="ddp" if processes > 1 else "auto")
    # 153 images do not divide into two processes, so one of them is dealt out twice.
    trainer.validate(model, DataLoader(digits(153, start=301), batch_size=16), verbose=False)
    if trainer.is_global_zero:
        assert monitor.report is not None
        monitor.report.save(path)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
