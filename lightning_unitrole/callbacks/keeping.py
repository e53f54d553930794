"""The reports of a run: kept as far as memory allows, and brought back from processes that were started for it."""

from __future__ import annotations

import multiprocessing
import shutil
import tempfile
import uuid
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_unitrole.reports.report import UnitReport

HISTORY_BYTES = 64 * 2**20
"""Memory that earlier reports may take; the oldest are let go."""


class KeepsReports:
    """Holds the latest report of one model, and earlier ones."""

    def __init__(self) -> None:
        self._report: UnitReport | None = None
        self._history: list[UnitReport] = []
        self._of: weakref.ref[Any] | None = None
        # Named before processes are started, as by ``ddp_spawn``, so that they and this one know the same folder.
        self._handover = Path(tempfile.gettempdir()) / f"unit_roles_{uuid.uuid4().hex}"

    @property
    def report(self) -> UnitReport | None:
        """The latest report; None before the first."""
        if self._report is None:
            self._take_over()
        return self._report

    @report.setter
    def report(self, report: UnitReport | None) -> None:
        self._report = report

    @property
    def history(self) -> list[UnitReport]:
        """The earlier reports of this run, oldest first, as far as they take less than 64 MiB."""
        if self._report is None:
            self._take_over()
        return self._history

    @history.setter
    def history(self, history: list[UnitReport]) -> None:
        self._history = history

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what lives in this process alone."""
        return {**vars(self), "_of": None}

    def keep(self, report: UnitReport) -> None:
        """Take a report as the latest."""
        if self._report is not None:
            self._history.append(replace(self._report, examples={}))
            while self._history and sum(one.num_bytes for one in self._history) > HISTORY_BYTES:
                del self._history[0]
        self._report = report

    def forget_reports(self) -> None:
        """Begin a new run."""
        self._report, self._history = None, []

    def is_of_another(self, model: Any) -> bool:
        """Whether the reports are of another model than this, which they are of from now on."""
        before, self._of = self._of, weakref.ref(model)
        return before is not None and before() is not model

    def leave_reports(self) -> None:
        """Save the reports where the process that started this one finds them."""
        if multiprocessing.parent_process() is not None and self._report is not None:
            self._handover.mkdir(mode=0o700, exist_ok=True)
            for place, report in enumerate([*self._history, self._report]):
                report.save(self._handover / f"{place:06}.npz")

    def _take_over(self) -> None:
        if multiprocessing.parent_process() is None and self._handover.is_dir():
            for path in sorted(self._handover.glob("*.npz")):
                self.keep(UnitReport.load(path))
            shutil.rmtree(self._handover, ignore_errors=True)
