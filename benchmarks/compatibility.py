"""Which networks are analysed and pruned, and how: a page made of published architectures with random weights.

    python benchmarks/compatibility.py                                # all, to docs/compatibility.md
    python benchmarks/compatibility.py torchvision/resnet18 timm/pit_ti_224

torchvision's classifiers, the smallest of each family of timm, and the image classifiers of Hugging Face's
transformers as they come, up to a number of parameters; timm and transformers only where they are installed. Each in a
process of its own with a limit of time; what was found is kept in a file, so that a run that was broken off goes on
where it was.

Of each network up to six layers, evenly spread, are recorded and replayed with random halves of their units at zero;
a replay counts as exact if the outputs are those of the whole network with the same units at zero, up to rounding. Then
a third of the units of every group that can shrink is removed; that counts if the smaller network's outputs are those
of the masked one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from queue import Empty
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from lightning_unitrole.ablation.engine import run_switched_off
from lightning_unitrole.ablation.recorder import record_all
from lightning_unitrole.ablation.tape import UnreplayableError
from lightning_unitrole.ablation.verification import Replay, verify
from lightning_unitrole.errors import UnitRoleError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.units import find_unit_layers, select_layers
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.equivalence import remove_checked
from lightning_unitrole.pruning.network import count_parameters
from lightning_unitrole.pruning.rehearsal import blocked_groups
from lightning_unitrole.pruning.removal import plan_removal

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
IMAGES, TRIED, SIZE, CLASSES = 5, 6, 64, 10
LARGEST = {"torchvision": 30_000_000, "timm": 30_000_000, "transformers": 90_000_000}
"""Parameters; larger networks are scaled-up versions of others on the page."""
SIZES = {"torchvision/inception_v3": 96, "torchvision/alexnet": 96, "torchvision/maxvit_t": 224}
"""Side of the images where 64 pixels are too few; timm and transformers say it themselves."""
OPTIONS = {
    "torchvision/googlenet": {"init_weights": False, "aux_logits": False},
    "torchvision/inception_v3": {"init_weights": False},
}
FAMILIES = [
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto_rms",
    "cpubone_nano",
    "crossvit_tiny_240",
    "cs3darknet_focus_s",
    "csatv2",
    "cspnext_tiny",
    "davit_tiny",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fastvit_t8",
    "flexivit_small",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "ghostnet_050",
    "gmlp_ti16_224",
    "halonet_h1",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_v3",
    "lcnet_035",
    "lcnetv2_small",
    "legacy_seresnet18",
    "legacy_xception",
    "levit_128s",
    "lowformer_b0",
    "mambaout_femto",
    "maxvit_pico_rw_256",
    "mobilenetv2_035",
    "mobileone_s1",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nest_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "pit_ti_224",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m0_9",
    "res2next50",
    "resnest26d",
    "resnet10t",
    "resnetv2_18",
    "rexnet_100",
    "selecsls60",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_s",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "visformer_tiny",
    "vit_srelpos_small_patch16_224",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "volo_d1_224",
    "xception41p",
    "xcit_nano_12_p8_224",
]
"""timm's smallest network of each family that has one of 30 million parameters at most."""


class Row(NamedTuple):
    """What is said of one network."""

    name: str
    layers: int = 0
    automatic: int = 0
    tried: int = 0
    exact: int = 0
    cut: float = 0.0
    seconds: float = 0.0
    reason: str = ""
    uncut: str = ""


def names() -> Iterator[str]:
    """Networks of all libraries that are installed, up to :data:`LARGEST`."""
    for name in torchvision.models.list_models(module=torchvision.models):
        known = torchvision.models.get_model_weights(name)
        if next(iter(known)).meta["num_params"] <= LARGEST["torchvision"]:
            yield f"torchvision/{name}"
    if find_spec("timm"):
        yield from (f"timm/{name}" for name in FAMILIES)
    if find_spec("transformers"):
        for name in _transformers():
            yield f"transformers/{name}"


def _transformers() -> dict[str, tuple[Any, Any]]:
    """Image classifiers and their settings, by the name of the architecture."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    found = {}
    # Without networks of timm, and one that takes numbers of colours instead of images.
    for settings, model in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.items():
        if settings.model_type not in ("timm_wrapper", "imagegpt"):
            found[settings.model_type] = (settings, model[0] if isinstance(model, tuple) else model)
    return found


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A network with random weights, and images for it."""
    torch.manual_seed(0)
    library, _, model = name.partition("/")
    size = SIZES.get(name, SIZE)
    if library == "timm":
        import timm

        net = timm.create_model(model, num_classes=CLASSES).eval()
        size = next(side for side in (SIZE, net.pretrained_cfg["input_size"][-1]) if _takes(net, side))
    elif library == "transformers":
        settings, kind = _transformers()[model]
        net = kind(settings(num_labels=CLASSES))
        size = getattr(net.config, "image_size", None) or 224
        size = size if isinstance(size, int) else size[0]
    else:
        options: dict[str, Any] = dict(OPTIONS.get(name, {}))
        if model.startswith("vit_"):
            size = size // int(model.rpartition("_")[2]) * int(model.rpartition("_")[2])
            options["image_size"] = size
        net = torchvision.models.get_model(model, weights=None, num_classes=CLASSES, **options)
    return net.eval(), torch.rand(IMAGES, 3, size, size)


def _takes(net: nn.Module, size: int) -> bool:
    """Whether a network works with images of this size, which it says by failing."""
    try:
        with torch.no_grad():
            net(torch.rand(1, 3, size, size))
    except Exception:  # whatever it raises, such as a division by the zero rows that are left
        return False
    return True


def look_at(name: str) -> Row:
    """Find, record, replay, compare; then cut and compare."""
    begun = time.monotonic()
    try:
        net, images = make(name)
    except Exception as error:  # optional parts that are not installed, settings without defaults
        return Row(name, reason=f"could not be made: {_short(error)}")
    if count_parameters(net) > LARGEST[name.partition("/")[0]]:
        return Row(name, reason="left out for its size")
    row = Row(name, **_analysed(net, images))
    cut, uncut = _cut(net, images[:2])
    return row._replace(cut=cut, uncut=uncut, seconds=time.monotonic() - begun)


def _analysed(net: nn.Module, images: Tensor) -> dict[str, Any]:
    runner = Runner(net)
    try:
        with runner.undisturbed():
            found = find_unit_layers(net, net, images[:2])
            automatic = select_layers(found, "auto", smallest=4)
            every = [*found.main.values()]
            count = min(TRIED, len(every))
            layers = [every[place * (len(every) - 1) // max(count - 1, 1)] for place in range(count)]
            tapes = record_all(runner, layers, images, {layer.name: set() for layer in layers})
            levels, reasons = [], []
            for layer, tape in zip(layers, tapes, strict=True):
                if isinstance(tape, UnreplayableError):
                    levels.append(Replay.NONE)
                    reasons.append(str(tape))
                    continue
                level = verify(tape, images, lambda some, off, one=layer: run_switched_off(runner, one, some, off))
                levels.append(level)
                if level is Replay.NONE:
                    reasons.append("a replay gives other outputs")
    except UnitRoleError as error:
        return {"reason": _short(error)}
    exact = sum(level is not Replay.NONE for level in levels)
    return {
        "layers": len(every),
        "automatic": len(automatic),
        "tried": count,
        "exact": exact,
        "reason": "; ".join(sorted({*reasons})),
    }


def _cut(net: nn.Module, images: Tensor) -> tuple[float, str]:
    """The share of the parameters that leave with a third of each group, and why none do."""
    before = count_parameters(net)
    try:
        graph = channel_graph(net, net, images, batch=len(images))
        free = [group for group in graph.groups if group.reason is None and len(group) > 2]
        graph = graph.without(blocked_groups(net, net, graph, free, images))
        free = [group for group in graph.groups if group.reason is None and len(group) > 2]
        if not free:
            return 0.0, next((str(group.reason) for group in graph.groups), "no layer whose units could be removed")
        choice = {group.name: torch.randperm(len(group))[: len(group) // 3].tolist() for group in free}
        remove_checked(net, net, plan_removal(graph, choice), images)
    except UnitRoleError as error:
        return 0.0, _short(error)
    return 1 - count_parameters(net) / before, ""


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}" if not isinstance(error, UnitRoleError) else str(error)
    return text.split("\n")[0][:160].replace("|", "/")


def in_time(name: str, limit: float) -> Row:
    """Look at a network in a process of its own."""
    queue: Any = multiprocessing.Queue()
    process = multiprocessing.Process(target=_answer, args=(queue, look_at, name))
    process.start()
    until = time.monotonic() + limit
    row: Row | None = None
    while row is None and time.monotonic() < until and (process.is_alive() or not queue.empty()):
        with suppress(Empty):
            row = queue.get(timeout=0.2)
    over = process.is_alive()
    process.kill()
    process.join()
    if row is None:
        row = Row(name, seconds=limit, reason=f"took more than {limit:.0f} s" if over else "the process ended")
    return row


def _answer(queue: Any, function: Callable[[str], Row], name: str) -> None:
    try:
        queue.put(function(name))
    except Exception as error:  # whatever it is, it goes on the page: no raw error should reach a user
        queue.put(Row(name, reason=f"raw error: {_short(error)}"))


def page(rows: list[Row]) -> str:
    """The page, in Markdown."""
    packages = [name for name in ("torch", "torchvision", "timm", "transformers", "torch_pruning") if find_spec(name)]
    versions = [f"{name.replace('_', '-')} {version(name.replace('_', '-')).partition('+')[0]}" for name in packages]
    unmade = ("could not be made", "left out")
    tried = [row for row in rows if not row.reason.startswith(unmade)]
    analysed = [row for row in tried if row.layers]
    exact, layers = sum(row.exact for row in rows), sum(row.tried for row in rows)
    cut = [row for row in tried if row.cut]
    made = (
        f"Made by `python benchmarks/compatibility.py` with {', '.join(versions)}: random weights, images of {SIZE} "
        "pixels or the least that a network takes."
    )
    summary = (
        f"Of {len(tried)} networks {len(analysed)} are analysed, and {exact} of the {layers} layers tried in them are "
        "replayed exactly; for the others the whole network runs, with the same result. "
        f"{len(cut)} can be made smaller by `UnitPruning`; for the others there is `mode='mask'`."
    )
    legend = (
        '*Layers* can be named in `layers=`; *auto* are those that `layers="auto"` takes; *replayed* are of those '
        "tried; *cut* is the share of the parameters that left with a third of each group of units that hang together, "
        "where the smaller network computes what the masked one does."
    )
    lines = ["# Networks that are analysed and pruned", "", made, "", summary, "", legend]
    for library in dict.fromkeys(row.name.partition("/")[0] for row in tried):
        lines += [
            "",
            f"## {library}",
            "",
            "| Network | Layers | Auto | Replayed | Cut | Seconds | Why not |",
            "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        lines += [_line(row) for row in tried if row.name.startswith(f"{library}/")]
    if missing := [row.name for row in rows if row.reason.startswith(unmade)]:
        lines += ["", f"Not tried, for their size or because they need more than their settings: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    why = "; ".join(filter(None, (row.reason, row.uncut and f"not cut: {row.uncut}")))
    cut = f"{100 * row.cut:.0f} %" if row.cut else "-"
    return (
        f"| {row.name.partition('/')[2]} | {row.layers} | {row.automatic} | {row.exact} of {row.tried} | {cut} | "
        f"{row.seconds:.1f} | {why} |"
    )


def main() -> None:
    """Look at the networks that are named, or at all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="library/name; all when left out")
    parser.add_argument("--seconds", type=float, default=400, help="for a network")
    parser.add_argument("--cache", type=Path, default=Path("build/compatibility.jsonl"), help="what was found so far")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork")
    rows: dict[str, Row] = {}
    if not options.networks and options.cache.exists():
        rows = {row.name: row for row in (Row(**json.loads(line)) for line in options.cache.read_text().splitlines())}
    for name in options.networks or names():
        if name in rows:
            continue
        rows[name] = in_time(name, options.seconds)
        print(rows[name], flush=True)
        if not options.networks:
            options.cache.parent.mkdir(parents=True, exist_ok=True)
            with options.cache.open("a") as file:
                file.write(json.dumps(rows[name]._asdict()) + "\n")
    if not options.networks:
        PAGE.write_text(page(list(rows.values())), encoding="utf-8")


if __name__ == "__main__":
    main()
