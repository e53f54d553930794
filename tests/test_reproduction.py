"""The scripts of `reproduction/` run from end to end, and the exact part of what they claim holds."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from networks import mostly_slow
from PIL import Image
from sklearn.datasets import load_digits

from lightning_unitrole import analyze

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:images_per_class=.*have fewer:UserWarning"),
    # Lightning of one version on torch of another.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

FOLDER = Path(__file__).parent.parent / "reproduction"
RESULTS = {
    "f1_depth": ["f1_depth"],
    "f2_training": ["f2_training"],
    "f3_rescaling": ["f3_rescaling"],
    "f4_separation": ["f4_separation"],
    "f5_ablation": ["f5_gaps", "f5_explained"],
    "f6_roles": ["f6_roles_0", "f6_roles_40"],
    "f7_generalisation": ["f7_generalisation"],
    "reliability": ["reliability"],
}
TINY = {"seeds": 1, "epochs": 1, "train-per-class": 6, "test-per-class": 6, "images-per-class": 3, "width": 0.25}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of digits as an image folder; networks are cached beside it."""
    root = tmp_path_factory.mktemp("reproduction")
    data = load_digits()
    for index, (pixels, label) in enumerate(zip(data.images[:200], data.target[:200], strict=True)):
        path = root / "images" / ("train" if index < 100 else "test") / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).convert("RGB").save(path)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(RESULTS, quick=["f4_separation"]))
def test_a_script_writes_its_table_and_its_plots(name, script, folder, tmp_path, capsys, monkeypatch) -> None:
    module = script(name)
    if name == "f7_generalisation":
        monkeypatch.setattr(module, "SHARES", (0.0, 1.0))
    places = ["--data", str(folder / "images"), "--cache", str(folder / "cache"), "--out", str(tmp_path)]
    if name == "reliability":
        places.append("--quick")
    module.main([*places, "--ablation-points=3", *(f"--{key}={value}" for key, value in TINY.items())])
    printed = capsys.readouterr()
    assert "Estimated cost: " in printed.err
    assert "±" in printed.out
    with (tmp_path / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"0"}
    for plot in RESULTS[name]:
        with Image.open(tmp_path / f"{plot}.png") as image:
            assert min(image.size) > 100


def test_entropy_is_exactly_the_same_after_rescaling(script) -> None:
    common, rescaling = script("common"), script("f3_rescaling")
    torch.manual_seed(0)
    net = common.vgg("6,M,8,8", size=16).double().eval()
    net = rescaling.folded(net)
    for module in net:
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.bias, std=0.1)
    other = rescaling.rescaled(net, powers_of_two=True, seed=0)
    images = torch.rand(40, 3, 16, 16, dtype=torch.float64)
    data = [(images, torch.arange(40) % 10)]
    assert torch.equal(net(images), other(images))
    settings = {"layers": "all", "images_per_class": 4, "ablation_points": 0}
    for criterion, same in (("feature_entropy", True), ("filter_norm", False), ("mean_activation", False)):
        before, after = (analyze(model, data, data, criterion=criterion, **settings) for model in (net, other))
        for name, layer in before.layers.items():
            moved = after.layers[name].val
            assert torch.equal(layer.val.entropy.nan_to_num(), moved.entropy.nan_to_num())
            assert torch.equal(layer.val.score.nan_to_num(), moved.score.nan_to_num()) == same
        assert any(bool((layer.val.entropy > 0.5).any()) for layer in before.layers.values())


def test_resnet_has_the_parameters_of_the_published_ones(script) -> None:
    net = script("common").ResNet(3)
    assert sum(weight.numel() for weight in net.parameters()) == 269722
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_area_under_the_curve_counts_ties_half_and_nan_as_largest(script) -> None:
    common = script("common")
    assert common.auc([1, 2], [3, 4]) == 1
    assert common.auc([1, 3], [3, float("nan")]) == 0.875


@pytest.mark.slow
def test_the_statements_are_asked_of_a_network_with_stored_weights(script, tmp_path, capsys) -> None:
    torchvision = pytest.importorskip("torchvision")
    module = script("imagenet")
    torch.manual_seed(0)
    net = torchvision.models.squeezenet1_0()
    weights = tmp_path / "squeezenet.npz"
    np.savez(weights, **{key: value.numpy() for key, value in net.state_dict().items()})
    chance = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in script("imagenet_networks").CLASSES:
            for index in range(4):
                path = tmp_path / "images" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(chance.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    places = ["--data", str(tmp_path / "images"), "--out", str(tmp_path), "--weights", str(weights)]
    few = ["--seeds=1", "--random-orders=1", "--ablation-points=2"]
    module.main([*places, "--networks", "squeezenet1_0", *few])
    assert "squeezenet1_0, val images: loss" in capsys.readouterr().out
    with (tmp_path / "imagenet_rescaling.csv").open(encoding="utf-8") as file:
        unchanged = {(row["factors"], row["criterion"]): float(row["unchanged"]) for row in csv.DictReader(file)}
    assert unchanged["powers of two", "feature_entropy"] == 1 > unchanged["powers of two", "filter_norm"]
    case = module.network("squeezenet1_0", weights)
    stored = case.net.net.state_dict()
    assert all(torch.equal(stored[key], value) for key, value in net.state_dict().items())
    for part in ("entropy", "rescaling", "ablation", "roles", "removal"):
        with (tmp_path / f"imagenet_{part}.csv").open(encoding="utf-8") as file:
            assert list(csv.DictReader(file)), part
    assert (tmp_path / "imagenet_ablation.png").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_the_vgg16_that_is_trained_here_is_found_again_and_goes_on_where_it_was(
    script, folder, tmp_path, capsys, monkeypatch
) -> None:
    common, vgg16 = script("common"), script("vgg16")
    places = ["--data", str(folder / "images"), "--cache", str(tmp_path), "--width=0.0625", "--batch=64"]
    vgg16.main([*places, "--sizes", "16"])
    first = torch.load(tmp_path / "vgg16_bn" / "last.ckpt", weights_only=True)
    vgg16.main([*places, "--sizes", "16", "20", "32"])
    last = torch.load(tmp_path / "vgg16_bn" / "last.ckpt", weights_only=True)
    assert (first["global_step"], last["global_step"]) == (1, 3)
    assert "test accuracy" in capsys.readouterr().out
    net, name = common.published(tmp_path / "vgg16_bn.pt")
    assert name == "VGG-16-BN"
    assert net.resize.size == 32
    convolutions = [module for module in net if isinstance(module, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions][-1] == 32
    assert len(convolutions) == 13
    assert all(torch.equal(value, last["state_dict"][f"net.{key}"]) for key, value in net.state_dict().items())
    monkeypatch.setattr(script("f7_generalisation"), "SHARES", (0.0, 1.0))
    further = ["--weights", str(tmp_path / "vgg16_bn.pt"), "--layers", "conv7_8", "--ablation-points=0"]
    tiny = [f"--{key}={value}" for key, value in TINY.items()]
    script("f7_generalisation").main([*places[:4], "--out", str(tmp_path), *further, *tiny])
    with (tmp_path / "f7_vgg16_bn.csv").open(encoding="utf-8") as file:
        assert {float(row["entropy"]) > 0 for row in csv.DictReader(file)} == {True}
    asked = [*places[:4], "--out", str(tmp_path), "--networks", "vgg16_bn", "--weights", str(tmp_path / "vgg16_bn.pt")]
    script("imagenet").main([*asked, "--draws", "1", "--parts", "cost", "removal", "--random-orders=1"])
    with (tmp_path / "imagenet_cost.csv").open(encoding="utf-8") as file:
        cost = list(csv.DictReader(file))
    assert [row["settings"] for row in cost] == ["defaults", "ten classes"]
    assert all(int(row["images_a_side"]) > 50 and float(row["seconds"]) > 0 for row in cost)
    script("imagenet").main([*asked, "--draws", "0", "1", "--parts", "removal", "--random-orders=2"])
    rows = script("imagenet_results").read(tmp_path / "imagenet_removal.csv")
    assert [(row["draw"], row["order"]) for row in rows if "random" in row["order"]] == [
        (draw, f"random {place}") for draw in (0, 1) for place in (0, 1)
    ]
    assert (tmp_path / "imagenet_removal.png").exists()
