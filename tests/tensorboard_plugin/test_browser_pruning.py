"""What pruning did, in the tab, with and without a monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Digits, loaders, make_trainer
from tensorboard_plugin.conftest import PRUNED, tensorboard
from tensorboard_plugin.page import Page

from lightning_unitrole.callbacks import UnitPruning, UnitRoleMonitor

LIVE = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # torch's own deprecations, raised by Lightning
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_a_run_without_a_monitor_shows_what_was_pruned(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="only_pruning")
    assert page.view == "pruning"
    assert page.text("[role=tab]") == "Pruning"
    said = page.text(".view-pruning .findings")
    assert said.startswith("5 units went in 2 cuts. The network has 50 % of its MACs and 60 % of its parameters left.")
    assert said.endswith("Accuracy was 95.0 % before the first cut and is 93.0 % now.")
    rows = [row.split() for row in page.text(".cuts-table tbody").splitlines()]
    assert rows[1] == [
        "epoch",
        "1,",
        "step",
        "100",
        "3",
        "60,000",
        "75",
        "%",
        "4,000",
        "95.0",
        "%",
        "\u2013",
        "80.0",
        "%",
    ]
    assert rows[2][4:] == ["2", "40,000", "50", "%", "3,000", "94.0", "%", "91.0", "%", "90.0", "%"]
    assert "predicted" in page.text(".cuts-table thead")
    left = page.js("return [...document.querySelectorAll('.view-pruning [data-layer]')].map(r => r.dataset)")
    assert left == [{"layer": name, "left": str(width)} for name, width in PRUNED.after.widths.items()]
    strip = "return [...document.querySelectorAll('[data-layer=conv2] rect')].map(r => r.textContent)"
    assert page.js(strip) == [
        "unit 0: removed at epoch 1",
        "units 1 to 4: left",
        "unit 5: removed at epoch 1",
        "unit 6: removed at epoch 3",
        "units 7 to 11: left",
    ]
    assert "its units are the classes" in page.js("return document.querySelector('.view-pruning details').textContent")
    page.press("1", "[", "p", "\ue012")  # keys of views that this run has nothing for
    assert page.view == "pruning"
    page.show(run="baseline", view="overview")
    assert "Pruning" not in page.text("[role=tab]")
    page.show(run="only_pruning")
    assert page.view == "pruning"
    assert page.errors() == []


@pytest.mark.parametrize("watched", [False, True], ids=["alone", "with a monitor"])
@pytest.mark.parametrize("marks", [pytest.param(None, marks=LIVE)], ids=[""])
def test_the_callback_writes_to_the_tab(driver: Any, tmp_path: Path, watched: bool, marks: None) -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    monitor = UnitRoleMonitor(layers="all", images_per_class=8, ablation_points=4, every_n_epochs=1, log_figures=False)
    pruning = UnitPruning(amount=0.3, start_epoch=1, choose_by="filter_norm", monitor=None if watched else monitor)
    callbacks = (monitor, pruning) if watched else (pruning,)
    make_trainer(*callbacks, logger=TensorBoardLogger(tmp_path), max_epochs=3).fit(Digits(), *loaders())
    report = pruning.report
    assert report is not None
    assert report.steps
    with tensorboard(tmp_path, runs=1) as address:
        page = Page(driver, address, view="pruning")
        assert len(page.text(".cuts-table tbody").splitlines()) == 2 + len(report.steps)
        left = page.js("return [...document.querySelectorAll('.view-pruning [data-left]')].map(r => +r.dataset.left)")
        assert left == list(report.after.widths.values())
        gone = page.js("return document.querySelectorAll('.units-strip .gone').length")
        assert 0 < gone <= sum(step.num_units for step in report.steps)
        if watched:
            page.show(view="transitions")
            assert "Removed" in page.text(".view-transitions thead")
        assert page.errors() == []


def test_what_is_logged_of_pruning(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from torch.utils.tensorboard import SummaryWriter

    from lightning_unitrole.tensorboard_plugin.cuts import write_pruning
    from lightning_unitrole.tensorboard_plugin.packing import inflate, unpack

    with SummaryWriter(tmp_path) as writer:
        write_pruning(writer, PRUNED.state_dict(), epoch=3, step=300)
    events = list(EventFileLoader(str(next(tmp_path.iterdir()))).Load())
    (value,) = [value for event in events for value in event.summary.value]
    info, arrays = unpack(inflate(value.tensor.tensor_content))
    assert info["layers"] == ["conv1", "conv2", "head"]
    assert arrays["cut_at"].tolist() == [0, 0, 1, 0, 0, 0, 0, 2, 1, *[0] * 4, 1, 2, *[0] * 5, *[0] * 10]
    cuts = dict(zip(info["columns"]["cuts"], arrays["cuts"].T.tolist(), strict=True))
    assert cuts["accuracy_after"] == [0.80, 0.90]
    assert np.isnan(cuts["predicted_accuracy"]).all()
