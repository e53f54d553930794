"""Trains VGG-16 with batch normalisation, at its full width, on all training images of CIFAR-10.

The network of the paper in the form that is usual for 32 pixels: thirteen convolutions of 64 to 512 units and one
linear layer. Its convolutions begin by handing their maps on (Zagoruyko & Komodakis, *DiracNets*, 2017), without which
so deep a network without shortcuts learns slowly: after two epochs on images of 16 pixels it is right on 65 % of the
test images instead of 58. Early epochs see smaller images, which is quicker. Where the processor has bfloat16 the
convolutions use it. Every epoch is kept: a run that was broken off goes on where it was.

    python reproduction/vgg16.py --data FOLDER                  # writes CACHE/vgg16_bn.pt
    python reproduction/imagenet.py --data FOLDER --networks vgg16_bn --weights CACHE/vgg16_bn.pt
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import common
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

SIDE = 32
"""Side of the images as they are."""
SIZES = (16,) * 10 + (20,) * 6 + (24,) * 6 + (28,) * 4 + (32,) * 8
"""Side of the images in training, by epoch."""
WARM_UP = 0.2
"""Share of the steps in which the learning rate rises."""


class Sizes(pl.Callback):
    """Scales the images of each epoch to its size; those of validation are whole."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the side of this epoch."""
        pl_module.net.resize.size = self.sizes[trainer.current_epoch]

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Images as they are."""
        pl_module.net.resize.size = SIDE


class Classifier(common.Classifier):
    """A network with a learning rate that rises in a line and falls in half a cosine, step by step."""

    def configure_optimizers(self) -> dict[str, Any]:
        """SGD with momentum."""
        configured = super().configure_optimizers()
        steps = int(self.trainer.estimated_stepping_batches)

        def share(step: int) -> float:
            done = step / steps
            return done / WARM_UP if done < WARM_UP else (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(configured["optimizer"], share)
        return configured | {"lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def hand_on(net: nn.Module) -> None:
    """Begin with convolutions whose first units give the maps that they read, and whose others are random."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 3:
            nn.init.dirac_(module.weight.detach()[: module.in_channels])


def has_bfloat16() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32."""
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on training, and write the weights."""

    def own(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="side of the images by epoch")
        parser.add_argument("--learning-rate", type=float, default=0.1)
        parser.add_argument("--batch", type=int, default=128, help="images of a step")
        parser.add_argument("--seed", type=int, default=0)

    options = common.parse(
        argv,
        __doc__,
        cost="an hour on one core that has bfloat16.",
        full={"sizes": [32] * 60},
        options=own,
        train_per_class=10**6,
    )
    images = common.load_images(options)
    data = images.sample("train", options.train_per_class, seed=options.seed)
    test = images.sample("test", 10**6, seed=0)
    recipe = common.Recipe(
        plan=common.widened(common.VGG16, options.width),
        seed=options.seed,
        size=SIDE,
        train_per_class=options.train_per_class,
        test_per_class=10**6,
        augment=True,
        epochs=len(options.sizes),
        learning_rate=options.learning_rate,
        batch_size=options.batch,
    )
    net = recipe.network(len(images.names)).to(memory_format=torch.channels_last)
    hand_on(net)
    pl.seed_everything(options.seed, verbose=False)
    kept = ModelCheckpoint(
        options.cache / "vgg16_bn", "last", enable_version_counter=False, save_on_train_epoch_end=True
    )
    trainer = pl.Trainer(
        max_epochs=recipe.epochs,
        callbacks=[kept, Sizes(options.sizes)],
        check_val_every_n_epoch=5,
        precision="bf16-mixed" if has_bfloat16() else "32-true",
        devices=1,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
    )
    model = Classifier(net, recipe)
    loaders = DataLoader(data, recipe.batch_size, shuffle=True, drop_last=True), DataLoader(test, 256)
    last = options.cache / "vgg16_bn" / "last.ckpt"
    trainer.fit(model, *loaders, ckpt_path=str(last) if last.exists() else None)
    loss, accuracy = common.evaluate(net.eval(), test)
    torch.save({"plan": recipe.plan, "state_dict": net.state_dict()}, options.cache / "vgg16_bn.pt")
    print(f"test accuracy {100 * accuracy:.1f} %, loss {loss:.3f}: {options.cache / 'vgg16_bn.pt'}")


if __name__ == "__main__":
    main()
