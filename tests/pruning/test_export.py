"""A slim network leaves PyTorch like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import mostly_slow
from pruned import images, known, outputs, random_items
from torch import Tensor, nn

from lightning_unitrole.pruning.history import record_removals
from lightning_unitrole.pruning.removal import plan_removal, remove


def slim(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A slim network with its history, float32 images, and its outputs on them."""
    net, graph = known(name)
    removal = plan_removal(graph, random_items(graph))
    remove(net, removal)
    record_removals(net, [removal])
    net, inputs = net.float().eval(), images(64).float()
    return net, inputs, outputs(net, inputs)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(["resnet18", "vgg11_bn", "mobilenet_v3_small"], quick=["resnet18"]))
def test_torch_export(name: str, tmp_path: Path) -> None:
    net, inputs, expected = slim(name)
    torch.export.save(torch.export.export(net, (inputs,)), tmp_path / "slim.pt2")
    again = torch.export.load(tmp_path / "slim.pt2").module()
    torch.testing.assert_close(again(inputs), expected, rtol=1e-4, atol=1e-4)


# torch's own, from inside of its exporter.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, inputs, expected = slim(name)
    path = tmp_path / "slim.onnx"
    torch.onnx.export(net, (inputs,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
