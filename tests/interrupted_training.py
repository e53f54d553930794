"""A training that may be killed at any moment and goes on from its last checkpoint; run as a script by the tests."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from support import make_trainer
from torch.utils.data import DataLoader
from unchanged import Tiny, monitor, train_images, val_images

from lightning_unitrole.callbacks import UnitPruning

EPOCHS = 6


class SameNumbersEachStep(pl.Callback):
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)


class Tells(pl.Callback):
    """Writes a line for each epoch, so that others know that training is under way."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        print("epoch", trainer.current_epoch, flush=True)


def train(folder: Path) -> None:
    """Train up to the end, from the last checkpoint if there is one, and save the weights."""
    torch.manual_seed(0)
    module, last = Tiny(), folder / "last.ckpt"
    watching = monitor()
    pruning = UnitPruning(
        amount=0.5, choose_by="mean_activation", schedule="linear", start_epoch=1, end_epoch=4, monitor=watching
    )
    checkpoint = ModelCheckpoint(folder, save_last=True, enable_version_counter=False)
    trainer = make_trainer(
        watching, pruning, SameNumbersEachStep(), Tells(), checkpoint, max_epochs=EPOCHS, enable_checkpointing=True
    )
    train_loader = DataLoader(train_images(), batch_size=16)
    val_loader = DataLoader(val_images(), batch_size=16)
    trainer.fit(module, train_loader, val_loader, ckpt_path=last if last.exists() else None)
    torch.save(module.state_dict(), folder / "end.pt")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    train(Path(sys.argv[1]))
