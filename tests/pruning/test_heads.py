"""Heads of attention, written in many ways, are found by trying and leave whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pruned import Frozen, assert_close, graph_of, images, outputs, seeded
from support import digits, make_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_unitrole import UnitPruning, UnitRoleMonitor, load_pruned
from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.network.attention import MultiheadAttention, open_attention
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.equivalence import remove_checked
from lightning_unitrole.pruning.groups import ChannelGraph
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.network import count_macs, count_parameters
from lightning_unitrole.pruning.removal import Removal, plan_removal, regrow, remove
from lightning_unitrole.pruning.selection import Candidate, Limits, choose, saving

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Maximum recursive depth reached"),  # Torch-Pruning's
]

WIDTH, HEADS = 12, 3


class Packed(nn.Module):
    """As in timm: queries, keys and values from one layer, with normalised queries and keys."""

    def __init__(self, *, fused: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fused = HEADS, WIDTH // HEADS, WIDTH, fused
        self.depth = HEADS  # which is no number of heads
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(self.head_dim)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = self.norm(qkv[0]), self.norm(qkv[1]), qkv[2]
        if self.fused:
            joined = F.scaled_dot_product_attention(q, k, v)
        else:
            joined = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1) @ v
        joined = joined.transpose(1, 2).reshape(batch, tokens, self.attn_dim)
        for _ in range(self.depth - 2):
            joined = joined * 1.5
        return self.proj(joined)


class Core(nn.Module):
    """As in Hugging Face's: three layers, and the projection in a module beside this one."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = HEADS, WIDTH // HEADS, WIDTH
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        def heads(tokens: Tensor) -> Tensor:
            return tokens.view(*x.shape[:2], self.num_attention_heads, self.attention_head_size).transpose(1, 2)

        scores = heads(self.query(x)) @ heads(self.key(x)).transpose(-1, -2) / self.attention_head_size**0.5
        joined = (F.softmax(scores, dim=-1) @ heads(self.value(x))).permute(0, 2, 1, 3).contiguous()
        return (joined.view(*joined.shape[:2], self.all_head_size),)


class Parted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Core()
        self.output = nn.ModuleDict({"dense": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        return self.output["dense"](self.attention(x)[0])


class Biased(nn.Module):
    """Biases of its own, also one for the keys that stays zero, a table for each head, and no attribute to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head_width = WIDTH // HEADS
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.register_buffer("k_bias", torch.zeros(WIDTH))
        self.table = nn.Parameter(torch.randn(16, HEADS))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(2, (3, -1, self.head_width))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        places = torch.arange(x.shape[1])
        bias = self.table[(places[:, None] - places).abs()].permute(2, 0, 1)[None]
        return self.proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))


class Interleaved(nn.Module):
    """Head after head, each with its query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.n_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2).chunk(3, -1)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Normalised(nn.Module):
    """Convolutions with batch normalisation for layers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.qkv = nn.Sequential(nn.Conv1d(WIDTH, 3 * WIDTH, 1), nn.BatchNorm1d(3 * WIDTH))
        self.proj = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.transpose(1, 2)).unflatten(1, (self.heads, 3, -1)).transpose(-2, -1).unbind(2)
        joined = F.scaled_dot_product_attention(q, k, v).transpose(-2, -1).flatten(1, 2)
        return self.proj(joined).transpose(1, 2)


class Torch(nn.Module):
    """torch's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.mha.batch_first else x.transpose(0, 1)
        y = self.mha(y, y, y)[0]
        return y if self.mha.batch_first else y.transpose(0, 1)


class Weighed(Torch):
    """What heads look at on average is an output too."""

    def forward(self, x: Tensor) -> Tensor:
        y, weights = self.mha(x, x, x)
        return y + weights.sum(1)[..., None]


class ByWidth(nn.Module):
    """The width of a head is that of the input over the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.n_head, width // self.n_head).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width))


class Talking(Packed):
    """Heads that are mixed, so that none can be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HEADS, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = self.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Windows(Packed):
    """Windows where others have heads: all of them share all weights."""

    def __init__(self, windows: int = 4) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(1, (self.windows, -1)).unflatten(3, (3, WIDTH)).permute(3, 0, 1, 2, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).flatten(1, 2))


class OneHead(Packed):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 1, WIDTH
        self.norm = nn.LayerNorm(WIDTH)


class Small(nn.Module):
    """A transformer of two blocks for images of 16 pixels in four patches."""

    def __init__(self, attention: Callable[[], nn.Module], *, channels: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.attentions = nn.ModuleList(attention() for _ in range(2))
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH)) for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for index, (attention, hidden) in enumerate(zip(self.attentions, self.hidden, strict=True)):
            x = x + attention(self.norms[2 * index](x))
            x = x + hidden(self.norms[2 * index + 1](x))
        return self.head(x.mean(1))


class Layers(nn.Module):
    """torch's layers of a transformer, which compute all of a layer in one call where they can."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 20, 0.0, batch_first=True, norm_first=True)
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(16, 4, 2, HEADS, WIDTH, 24, num_classes=5)
    nn.init.normal_(net.heads.head.weight)
    return net


def swin(version: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import swin_transformer

        more = {}
        if version == 2:
            more = {
                "block": swin_transformer.SwinTransformerBlockV2,
                "downsample_layer": swin_transformer.PatchMergingV2,
            }
        return swin_transformer.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [3, 3], num_classes=5, **more)

    return build


CUT = {
    "packed": (lambda: Small(Packed), 16),
    "not fused": (lambda: Small(lambda: Packed(fused=False)), 16),
    "in parts": (lambda: Small(Parted), 16),
    "biased": (lambda: Small(Biased), 16),
    "interleaved": (lambda: Small(Interleaved), 16),
    "normalised": (lambda: Small(Normalised), 16),
    "torch's": (lambda: Small(Torch), 16),
    "torch's without biases": (lambda: Small(lambda: Torch(bias=False, batch_first=False)), 16),
    "torch's layers": (Layers, 16),
    "torchvision's ViT": (vision_transformer, 16),
    "torchvision's Swin": (swin(1), 40),
    "torchvision's Swin V2": (swin(2), 40),
}


def heads_of(graph: ChannelGraph) -> dict[str, int]:
    return {group.name: len(group) for group in graph.groups if group.of_heads and group.reason is None}


@pytest.mark.parametrize(("build", "size"), CUT.values(), ids=CUT.keys())
def test_without_heads_it_computes_what_it_does_with_them_at_zero(build: Callable[[], nn.Module], size: int) -> None:
    net, inputs = seeded(build), images(size)
    everything, whole = Frozen(net), outputs(net, inputs)
    graph = graph_of(net, inputs)
    everything.assert_unchanged()
    heads = heads_of(graph)
    assert len(heads) == len(graph.heads) > 1
    items = {name: [*range(index % 2, count - 1 + index % 2)] for index, (name, count) in enumerate(heads.items())}
    items |= {group.name: [2] for group in graph.groups if group.reason is None and not group.of_heads}
    removal = Removal.from_state_dict(plan_removal(graph, items).state_dict())
    size_before, cost = count_parameters(net), count_macs(net, net, inputs, batch=2)
    mask = UnitMask(net, removal)
    masked = outputs(net, inputs)
    mask.restore()
    everything.assert_unchanged()
    assert float((masked[0] - whole[0]).abs().max()) > 1e-4

    change = remove_checked(net, net, removal, inputs)
    assert_close(outputs(net, inputs), masked)
    with torch.enable_grad():
        assert_close([net(inputs)], masked)  # torch computes it in another way then
    assert size_before - count_parameters(net) == saving(graph, items, "parameters") > 0
    assert cost - count_macs(net, net, inputs, batch=2) == saving(graph, items, "macs") > 0
    assert_close(outputs(copy.deepcopy(net), inputs), masked)
    after = graph_of(net, inputs)
    assert after.heads == dict.fromkeys(heads, 1)
    change.undo()
    everything.assert_unchanged()
    assert_close(outputs(net, inputs), whole, 0)


def test_what_belongs_to_a_head_by_hand() -> None:
    net = seeded(lambda: Small(Packed))
    (group, _) = (group for group in graph_of(net, images(16)).groups if group.of_heads)
    assert group.name == "attentions.0#heads"
    rows = [tuple(part * WIDTH + head * 4 + one for part in range(3) for one in range(4)) for head in range(HEADS)]
    columns = [tuple(range(4 * head, 4 * head + 4)) for head in range(HEADS)]
    assert dict(group.channels) == {"attentions.0#heads": [(0,), (1,), (2,)], "attentions.0.qkv": rows}
    assert dict(group.slices) == {
        ("attentions.0.qkv.weight", 0): rows,
        ("attentions.0.qkv.bias", 0): rows,
        ("attentions.0.proj.weight", 1): columns,
    }
    assert dict(group.numbers) == {"attentions.0.num_heads": 1, "attentions.0.attn_dim": 4}
    assert group.macs == 2 * 16 * 16 * 4  # scores and values of 16 tokens


@pytest.mark.parametrize(
    ("build", "why"),
    [
        pytest.param(ByWidth, "not from the width of its input; mode='mask' holds heads at zero", id="by its width"),
        pytest.param(Talking, "Heads can leave where each has weights of its own", id="heads that are mixed"),
        pytest.param(Weighed, "without one of its heads fails", id="weights that are an output"),
        pytest.param(OneHead, "it has a single head", id="one head"),
        pytest.param(Windows, "what belongs to each of its heads cannot be told apart", id="windows"),
        pytest.param(lambda: Torch(add_bias_kv=True), None, id="a key of its own"),
    ],
)
def test_heads_that_cannot_leave(build: Callable[[], nn.Module], why: str | None) -> None:
    net = seeded(lambda: Small(build))
    everything = Frozen(net)
    graph = graph_of(net, images(16))
    everything.assert_unchanged()
    reasons = [group.reason for group in graph.groups if group.of_heads]
    assert len(reasons) == (0 if why is None else 2)
    assert all(why is not None and why in str(reason) for reason in reasons)
    assert {"hidden.0.0", "hidden.1.0"} <= {group.name for group in graph.groups if group.reason is None}


def test_what_only_looks_like_heads_is_not_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def counted(*args: Any) -> Any:
        tried[-1] += 1
        return torch.func.functional_call(*args)

    monkeypatch.setattr("lightning_unitrole.pruning.heads.functional_call", counted)
    for windows in (4, 8):
        tried.append(0)
        graph_of(seeded(lambda windows=windows: Small(lambda: Windows(windows))), images(16))
    assert tried[0] == tried[1] > 0


@pytest.mark.parametrize("attention", [Packed, Parted, Torch])
def test_heads_of_a_network_in_mixed_precision(attention: Callable[[], nn.Module]) -> None:
    net, inputs = seeded(lambda: Small(attention)).float(), images(16).float()

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    graph = channel_graph(forward, net, inputs, batch=2)
    heads = heads_of(graph)
    assert [*heads.values()] == [HEADS, HEADS]
    remove_checked(forward, net, plan_removal(graph, {name: [1] for name in heads}), inputs)


def test_shared_attention_is_left_alone() -> None:
    def build() -> nn.Module:
        net = Small(Packed)
        net.attentions[1].proj.weight = net.attentions[0].proj.weight
        return net

    reasons = {group.name: group.reason for group in graph_of(seeded(build), images(16)).groups}
    assert reasons["attentions.0#heads"] == "'attentions.0.proj.weight' is shared with 'attentions.1.proj.weight'"


def test_heads_that_cannot_leave_can_be_held_at_zero() -> None:
    net, inputs = seeded(lambda: Small(ByWidth)), images(16)
    graph = channel_graph(net, net, inputs, batch=2, loose=True)
    assert heads_of(graph) == {"attentions.0#heads": HEADS, "attentions.1#heads": HEADS}
    mask = UnitMask(net, plan_removal(graph, {"attentions.0#heads": [0, 2]}))
    masked = outputs(net, inputs)
    mask.restore()
    net.attentions[0].proj.register_forward_pre_hook(
        lambda module, args: args[0] * torch.tensor([0.0, 1.0, 0.0]).repeat_interleave(4).double()
    )
    assert_close(outputs(net, inputs), masked)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False, "kdim": 5, "vdim": 7}], ids=str)
def test_written_out_attention_is_that_of_torch(options: dict[str, Any], need_weights: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, **options).double().eval()
    query = torch.randn(5, 2, WIDTH).double()
    key, value = (torch.randn(7, 2, width).double() for width in (attention.kdim, attention.vdim))
    padding, apart = torch.rand(2, 7) > 0.8, torch.rand(2 * HEADS, 5, 7) > 0.8
    tokens = [one.transpose(0, 1) for one in (query, key, value)] if attention.batch_first else [query, key, value]
    for more in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": torch.randn(5, 7).double()},
        {"attn_mask": apart, "key_padding_mask": padding, "average_attn_weights": False},
    ):
        expected = attention(*tokens, need_weights=need_weights, **more)
        with open_attention([attention]):
            assert type(attention) is MultiheadAttention
            found = attention(*tokens, need_weights=need_weights, **more)
        assert type(attention) is nn.MultiheadAttention
        assert (found[1] is None) == (expected[1] is None) == (not need_weights)
        for one, other in zip(found, expected, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other)
    alone = [one[:, 0] for one in (query, key, value)]
    expected = attention(*alone, need_weights=need_weights)[0]
    with open_attention([attention]):
        torch.testing.assert_close(attention(*alone, need_weights=need_weights)[0], expected)


def test_regrown_and_refused_by_another_network() -> None:
    net, inputs = seeded(lambda: Small(Packed)), images(16)
    removal = plan_removal(graph_of(net, inputs), {"attentions.1#heads": [0]})
    other = seeded(lambda: Small(Packed))
    other.attentions[1].num_heads = 4
    with pytest.raises(DataError, match=r"'attentions\.1\.num_heads' is 4; expected 3"):
        remove(other, removal)
    remove(net, removal)
    assert (net.attentions[1].num_heads, net.attentions[1].attn_dim, net.attentions[1].depth) == (2, 8, 3)
    smaller = outputs(net, inputs)
    regrow(net, removal)
    assert (net.attentions[1].num_heads, net.attentions[1].attn_dim) == (3, 12)
    assert_close(outputs(net, inputs), smaller)


def test_torchs_attention_is_itself_again_when_all_heads_are_back() -> None:
    net, inputs = seeded(lambda: Small(Torch)), images(16)
    removal = plan_removal(graph_of(net, inputs), {"attentions.0.mha#heads": [2]})
    remove(net, removal)
    attention = net.attentions[0].mha
    assert type(attention) is MultiheadAttention
    assert isinstance(attention, nn.MultiheadAttention)
    smaller = outputs(net, inputs)
    tokens = torch.rand(2, 4, WIDTH).double()
    assert_close([pickle.loads(pickle.dumps(attention))(tokens, tokens, tokens)[0]], [attention(*[tokens] * 3)[0]], 0)
    program = torch.export.export(net, (inputs,))
    assert_close([program.module()(inputs)], smaller)
    regrow(net, removal)
    assert type(attention) is nn.MultiheadAttention
    assert attention.num_heads == HEADS
    assert_close(outputs(net, inputs), smaller)


def test_at_least_one_head_stays_and_round_numbers_are_for_channels() -> None:
    net = seeded(lambda: Small(Packed))
    graph = graph_of(net, images(16))
    candidates = [Candidate(group, torch.arange(3.0)) for group in graph.groups if group.of_heads]
    found = choose(
        candidates, graph, amount=None, of="macs", limits=Limits(min_units=8, round_to=8), original={}, now={}
    )
    assert found == {"attentions.0#heads": [0, 1], "attentions.1#heads": [0, 1]}
    with pytest.raises(SettingError, match=r"All 3 units of layer 'attentions.0#heads' would be removed"):
        plan_removal(graph, {"attentions.0#heads": [0, 1, 2]})


class Module(pl.LightningModule):
    def __init__(self, attention: str = "Packed") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Small(globals()[attention], channels=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def data() -> DataLoader[Any]:
    return DataLoader(digits(60), 30)


def heads_left(module: Module) -> list[int]:
    return [
        len(one.mha.in_proj_weight) // 12 if isinstance(one, Torch) else one.num_heads for one in module.net.attentions
    ]


@pytest.mark.parametrize("attention", ["Packed", "Torch"])
def test_heads_are_pruned_while_training_and_come_back_from_a_checkpoint(attention: str, tmp_path: Path) -> None:
    pl.seed_everything(0)
    module = Module(attention)
    watching = UnitRoleMonitor(images_per_class=2, every_n_epochs=99, backend="torch")

    def pruning() -> UnitPruning:
        return UnitPruning(amount=0.5, of="layer", start_epoch=1, skip_layers=["net.hidden.*"], monitor=watching)

    first = pruning()
    trainer = make_trainer(first, max_epochs=2)
    trainer.fit(module, data(), data())
    assert heads_left(module) == [2, 2]
    report = first.report
    assert report is not None
    (step,) = report.steps
    names = [f"net.attentions.{index}{'.mha' if attention == 'Torch' else ''}#heads" for index in (0, 1)]
    assert {name: len(units) for name, units in step.units.items() if name in names} == dict.fromkeys(names, 1)
    assert all(report.after.widths[name] == 2 for name in names)
    assert report.after.macs < report.before.macs
    assert step.predicted_loss == pytest.approx(step.loss_after, rel=1e-5)
    for parameter, state in trainer.optimizers[0].state.items():
        assert state["exp_avg"].shape == parameter.shape
    assert {id(one) for group in trainer.optimizers[0].param_groups for one in group["params"]} == {
        id(one) for one in module.parameters()
    }
    path = tmp_path / "pruned.ckpt"
    trainer.save_checkpoint(path)
    inputs = digits(4)[:][0]
    expected = module.eval()(inputs)
    torch.testing.assert_close(load_pruned(Module, path)(inputs), expected)
    fresh = Module(attention)
    make_trainer(pruning(), max_epochs=3).fit(fresh, data(), data(), ckpt_path=path)
    assert heads_left(fresh) == [2, 2]


def test_heads_are_held_at_zero_while_training() -> None:
    pl.seed_everything(0)
    module = Module("ByWidth")
    watching = UnitRoleMonitor(images_per_class=2, every_n_epochs=99, backend="torch")
    settings = {"amount": 0.4, "of": "layer", "start_epoch": 0, "monitor": watching}
    pruning = UnitPruning(mode="mask", **settings)
    make_trainer(pruning, max_epochs=1).fit(module, data(), data())
    report = pruning.report
    assert report is not None
    for index, attention in enumerate(module.net.attentions):
        (head,) = report.steps[0].units[f"net.attentions.{index}#heads"]
        assert not attention.proj.weight[:, 4 * head : 4 * head + 4].any()
        assert attention.n_head == HEADS
    with pytest.raises(SettingError, match=r"Layer 'net\.attentions\.0#heads' cannot be pruned: tried out"):
        make_trainer(UnitPruning(layers=["net.attentions.0#heads"], **settings), max_epochs=1).fit(
            Module("ByWidth"), data(), data()
        )


def test_heads_are_pruned_by_a_criterion() -> None:
    pl.seed_everything(0)
    module = Module()
    watching = UnitRoleMonitor(images_per_class=2, every_n_epochs=99, backend="torch")
    pruning = UnitPruning(
        choose_by="contribution", amount=0.4, of="layer", start_epoch=0, layers=["*#heads"], monitor=watching
    )
    make_trainer(pruning, max_epochs=1).fit(module, data(), data())
    assert heads_left(module) == [2, 2]
    assert [one.out_features for one in (module.net.hidden[0][0], module.net.hidden[1][0])] == [20, 20]
