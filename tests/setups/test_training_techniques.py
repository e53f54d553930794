"""Activation checkpoints, quantisation-aware training and parameters that are split over processes."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import people
import pytest
import pytorch_lightning as pl
import torch
from networks import mostly_slow
from people import CLASSES, Items, Plain, loaders, pair
from support import make_trainer
from test_setups import CURVE_IMAGES, IMAGES, fit, monitor
from test_trainers import assert_same, of_network
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.distributed.fsdp import ShardingStrategy
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lightning_unitrole import UnitPruning
from lightning_unitrole.callbacks.surroundings import splits_parameters
from lightning_unitrole.errors import SettingError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Please use quant_min"),
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),
    pytest.mark.filterwarnings("ignore:Found 11 module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    pl.seed_everything(0)


class Checkpointed(nn.Module):
    """Computes its activations again in the backward pass."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = people.backbone()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "sequential":
            return checkpoint_sequential(self.net, 3, x, use_reentrant=False)
        for part in (self.net[:3], self.net[3:8]):
            x = checkpoint(part, x, use_reentrant=self.kind == "reentrant")
        return self.net[8:](x)


@pytest.mark.parametrize("kind", mostly_slow(["reentrant", "plain", "sequential"], quick=["reentrant"]))
def test_activation_checkpoints(kind: str) -> None:
    module = Plain(Checkpointed(kind))
    pruning = UnitPruning(amount=0.3, start_epoch=5)  # tries out what it will have to do, and never does it
    report = fit(module, loaders(), monitor(), pruning)
    assert_same(report, of_network(copy.deepcopy(module.net.net)), prefix="net.net.")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reentrant", "plain"])
def test_a_checkpointed_network_is_pruned(kind: str) -> None:
    pruning = UnitPruning(amount=0.3, start_epoch=1)
    make_trainer(pruning, max_epochs=2).fit(Plain(Checkpointed(kind)), *loaders())
    assert pruning.report is not None
    assert pruning.report.after.macs <= 0.75 * pruning.report.before.macs


def traced() -> nn.Module:
    mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
    return quantize_fx.prepare_qat_fx(people.backbone().train(), mapping, torch.rand(2, 3, 12, 12))


def eager() -> nn.Module:
    net = nn.Sequential(quantization.QuantStub(), *people.backbone(), quantization.DeQuantStub()).train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(quantization.fuse_modules_qat(net, [["1", "2"], ["3", "4", "5"], ["7", "8"]]))


def observed() -> nn.Module:
    mapping = quantization.get_default_qconfig_mapping("fbgemm")
    return quantize_fx.prepare_fx(people.backbone().eval(), mapping, torch.rand(2, 3, 12, 12))


QUANTISED: dict[str, Callable[[], nn.Module]] = {"traced": traced, "eager": eager, "observed": observed}


def loss_without(net: nn.Module, module: str, off: Tensor) -> float:
    """Mean loss on the images of the curves with channels at zero, with the ranges that were found in training."""
    net = copy.deepcopy(net).eval().apply(quantization.disable_observer)
    data = Items(people.VAL, 1, pair)
    rows = [index for index in range(len(data)) if IMAGES <= index // CLASSES < IMAGES + CURVE_IMAGES]
    net.get_submodule(module).register_forward_hook(lambda _, args, out: out.masked_fill(off[:, None, None], 0))
    with torch.no_grad():
        return float(F.cross_entropy(net(data.images[rows]), data.labels[rows]))


@pytest.mark.parametrize("kind", mostly_slow(QUANTISED, quick=["traced"]))
def test_quantisation_aware_training(kind: str) -> None:
    module = Plain(QUANTISED[kind]())
    report = fit(module, loaders(), monitor())
    assert len(report.layers) == 2
    for name, layer in report.layers.items():
        curve, order = layer.val.curves["least_first"], layer.val.overall_order.flip(0)
        site = name.removeprefix("net.").removesuffix(".0")  # the block with its normalisation and activation
        for place in (0, len(curve.ablated) // 2):
            off = torch.zeros(len(order), dtype=torch.bool)
            off[order[: int(curve.ablated[place])]] = True
            assert float(curve.loss[place]) == pytest.approx(loss_without(module.net, site, off), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUANTISED)
def test_quantisation_goes_on_as_without_the_monitor(kind: str) -> None:
    ends = []
    for watches in ([], [monitor()]):
        pl.seed_everything(0)
        module = Plain(QUANTISED[kind]())
        make_trainer(*watches, max_epochs=2).fit(module, *loaders())
        ends.append(module.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("mode", ["remove", "mask"])
def test_what_is_prepared_for_quantisation_is_not_pruned(mode: str) -> None:
    pruning = UnitPruning(amount=0.3, start_epoch=5, mode=mode)
    with pytest.raises(SettingError, match=r"prepared for quantisation-aware training.*Prune first, and prepare"):
        make_trainer(pruning, max_epochs=1).fit(Plain(traced()), *loaders())


SPLIT = """
import sys
sys.path[:0] = {paths!r}
import pytorch_lightning as pl
from people import Plain, loaders
from pytorch_lightning.strategies import ModelParallelStrategy
from test_setups import monitor


class Split(Plain):
    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        print("something was trained")
        return super().training_step(batch, batch_idx)


if __name__ == "__main__":
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(), max_epochs=1, logger=False,
        callbacks=[monitor()],
    )
    trainer.fit(Split(), *loaders())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(pl.strategies, "ModelParallelStrategy"), reason="Lightning has it since 2.4")
def test_parameters_that_are_split_over_processes_are_refused(tmp_path: Path) -> None:
    here = Path(__file__).parent
    script = tmp_path / "split.py"
    script.write_text(SPLIT.format(paths=[str(here), str(here.parent)]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    said = "ModelParallelStrategy splits its parameters over the processes. Train with strategy='ddp', or look at"
    assert said in done.stderr, done.stderr[-2000:]
    assert "something was trained" not in done.stdout


@pytest.mark.parametrize(("sharding", "splits"), [("FULL_SHARD", True), ("SHARD_GRAD_OP", True), ("NO_SHARD", False)])
def test_what_splits_parameters_is_known_by_its_settings(sharding: str, splits: bool) -> None:
    class FSDPStrategy(pl.strategies.DDPStrategy):
        """The real one needs a GPU; what counts is its name, and how it splits."""

        sharding_strategy = getattr(ShardingStrategy, sharding)

    assert splits_parameters(FSDPStrategy()) == splits
    assert not splits_parameters(pl.strategies.DDPStrategy())
