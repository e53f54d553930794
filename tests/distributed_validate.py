"""Validates fixed weights in some processes and saves reports: ``distributed_validate.py PROCESSES FOLDER``."""

import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from support import Digits, digits, make_trainer, trained_net
from torch.utils.data import DataLoader

from lightning_unitrole.callbacks import UnitRoleMonitor


def main(processes: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(1)
    model = Digits()
    model.net = trained_net()
    monitors = [
        UnitRoleMonitor(
            images_per_class=9,
            ablation_points=6,
            train_data=digits(301),
            backend="torch",
            criterion="mean_activation",
            roles=roles,
        )
        for roles in ("turning_point", "contribution")
    ]
    trainer = make_trainer(*monitors, devices=processes, strategy="ddp" if processes > 1 else "auto")
    # 153 images do not divide into two processes, so one of them is dealt out twice.
    trainer.validate(model, DataLoader(digits(153, start=301), batch_size=16), verbose=False)
    if trainer.is_global_zero:
        for monitor in monitors:
            assert monitor.report is not None
            monitor.report.save(Path(folder) / f"{processes}_{monitor.roles}.npz")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
