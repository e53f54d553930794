"""Prunes in some processes and saves what each ends with: ``distributed_pruning.py PROCESSES MODE FOLDER``."""

import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from support import Digits, digits, make_trainer
from torch.utils.data import DataLoader

from lightning_unitrole.callbacks import UnitPruning, UnitRoleMonitor


class SaveGradients(pl.Callback):
    """Keeps the gradients that the last optimizer step saw."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: object) -> None:
        self.gradients = {name: parameter.grad.clone() for name, parameter in pl_module.named_parameters()}


def main(processes: int, mode: str, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pl.seed_everything(1)
    model = Digits()
    monitor = UnitRoleMonitor(images_per_class=9, ablation_points=6, train_data=digits(301), every_n_epochs=9)
    pruning = UnitPruning(amount=0.5, choose_by="taylor", schedule="linear", start_epoch=1, end_epoch=2, mode=mode)
    gradients = SaveGradients()
    trainer = make_trainer(monitor, pruning, gradients, max_epochs=3, devices=processes, strategy="ddp")
    trainer.fit(model, DataLoader(digits(300), batch_size=16), DataLoader(digits(153, start=301), batch_size=16))
    assert len(pruning.report.steps) == 2
    state = {"weights": model.state_dict(), "gradients": gradients.gradients}
    torch.save(state, Path(folder) / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
