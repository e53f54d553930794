"""One request to the server of the tab: its parameters, checked, and the data that they name."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any, TypeAlias

from tensorboard import plugin_util
from tensorboard.data import provider
from werkzeug import wrappers

from lightning_unitrole.tensorboard_plugin.contents import Part
from lightning_unitrole.tensorboard_plugin.index import LayerIndex, RunIndex, UnreadableError, printable, read_index
from lightning_unitrole.tensorboard_plugin.reading import Series, read_series
from lightning_unitrole.tensorboard_plugin.schema import OVERVIEW_TAG, PLUGIN_NAME

logger = logging.getLogger(__name__)

ALL_STEPS = 1_000_000
LISTED_FOR = 5.0
"""Seconds for which nobody asks TensorBoard again what runs there are."""

Runs: TypeAlias = Mapping[str, Mapping[str, Any]]
"""For each run, its time series by tag."""


class RequestError(Exception):
    """A request that cannot be answered: a status and a sentence for the reader."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Listing:
    """What runs there are, asked once for all the requests of a page: TensorBoard's data server takes 40 ms to answer.

    Args:
        seconds: for how long an answer holds. A page that is loaded or reloaded asks anew in any case.
    """

    def __init__(self, seconds: float = LISTED_FOR) -> None:
        self._seconds = seconds
        self._known: dict[str, tuple[float, Runs]] = {}
        self._lock = Lock()

    def runs(self, experiment: str, ask: Callable[[], Runs]) -> Runs:
        """The runs of an experiment. Whoever asks meanwhile waits for the same answer."""
        with self._lock:
            now = time.monotonic()
            asked, found = self._known.get(experiment, (-math.inf, {}))
            if now - asked > self._seconds:
                found = ask()
                self._known = {experiment: (now, found)}
            return found

    def forget(self, experiment: str) -> None:
        """Ask anew next time."""
        with self._lock:
            self._known.pop(experiment, None)


class Query:
    """One request: its parameters, checked, and the data that they name."""

    def __init__(self, data_provider: Any, request: wrappers.Request, listing: Listing | None = None) -> None:
        self._provider = data_provider
        self._request = request
        self._listing = listing or Listing()
        self._every: tuple[str, Sequence[Any]] | None = None
        self._context = plugin_util.context(request.environ)
        self._experiment = plugin_util.experiment_id(request.environ)

    def text(self, name: str, default: str | None = None) -> str:
        """A parameter, at most once and of a sane length."""
        values = self._request.args.getlist(name)
        if len(values) > 1 or (not values and default is None):
            raise RequestError(400, f"Expected one parameter {name!r}, got {len(values)}.")
        value = values[0] if values else str(default)
        if len(value) > 4096:
            raise RequestError(400, f"The parameter {name!r} is too long.")
        return value

    def number(self, name: str, limit: int) -> int:
        """A parameter that is an index below ``limit``."""
        text = self.text(name)
        if not _is_number(text, limit):
            raise RequestError(400, f"The parameter {name!r} has to be a whole number from 0 to {limit - 1}.")
        return int(text)

    def numbers(self, name: str, limit: int, most: int = 8) -> list[int]:
        """A parameter that lists a few of them."""
        texts = self.text(name).split(",")
        if len(texts) > most or not all(_is_number(text, limit) for text in texts):
            raise RequestError(400, f"The parameter {name!r} has to list {most} whole numbers below {limit} at most.")
        return [int(text) for text in texts]

    def optional(self, name: str, limit: int) -> int | None:
        """The same, or None where the parameter is left out."""
        return self.number(name, limit) if name in self._request.args else None

    @cached_property
    def runs(self) -> Runs:
        """For each run, its time series by tag."""
        if self._provider is None:
            return {}
        return self._listing.runs(self._experiment, self._list)

    def _list(self) -> Runs:
        found: Runs = self._provider.list_tensors(
            self._context, experiment_id=self._experiment, plugin_name=PLUGIN_NAME
        )
        return found

    def look_again(self) -> None:
        """Ask TensorBoard what runs there are, whenever it was asked last."""
        self._listing.forget(self._experiment)

    @cached_property
    def run(self) -> str:
        """The run that the request names."""
        wanted = self.text("run")
        for run in self.runs:
            if printable(run) == wanted:
                return run
        raise RequestError(404, "There is no such run with unit roles.")

    @cached_property
    def index(self) -> RunIndex:
        """What the first report of the run froze."""
        try:
            return index_of(self.runs[self.run])
        except UnreadableError as error:
            raise RequestError(404, f"The run cannot be shown: {error}.") from None

    @cached_property
    def layer(self) -> LayerIndex:
        """The layer that the request names by its place in the index."""
        return self.index.layers[self.number("layer", len(self.index.layers))]

    @cached_property
    def class_place(self) -> int:
        """Place of the requested class among those that were logged."""
        return self.number("class", len(self.index.classes))

    def version(self, tag: str) -> tuple[Hashable, ...]:
        """Tells the data of a tag from that of others, and from what it was before something was added to it."""
        series = self.runs[self.run].get(tag)
        return (self._experiment, self.run, tag, *(() if series is None else (series.max_step, series.max_wall_time)))

    def read(self, tag: str, part: Part, steps: Collection[int] | None = None) -> Series:
        """All steps of one tag, or some, in order, the last word on each, without what cannot be read."""
        try:
            # Mostly it is the latest that is wanted, and reading one costs less than finding it among all.
            few = steps is not None and len(steps) == 1 and not self._held(tag)
            events = self._events(tag, 1) if few else []
            if steps is None or not all(any(event.step == step for event in events) for step in steps):
                events = self._held(tag) or self._events(tag, ALL_STEPS)
                self._every = (tag, events)
        except Exception as error:
            # TensorBoard decodes the tensors itself, and fails at one that does not hold what its shape says.
            logger.warning("The tag %r of the run %r cannot be read: %r", tag, self.run, error)
            return Series([], ["TensorBoard could not read what the log holds here."])
        return read_series([event for event in events if steps is None or event.step in steps], part)

    def _held(self, tag: str) -> Sequence[Any]:
        """All events of the tag, where this request has read them before."""
        return self._every[1] if self._every is not None and self._every[0] == tag else ()

    def _events(self, tag: str, limit: int) -> Sequence[Any]:
        """At most so many events of a tag, the latest among them."""
        found: Mapping[str, Mapping[str, Sequence[Any]]] = self._provider.read_tensors(
            self._context,
            experiment_id=self._experiment,
            plugin_name=PLUGIN_NAME,
            downsample=limit,
            run_tag_filter=provider.RunTagFilter(runs=[self.run], tags=[tag]),
        )
        return found.get(self.run, {}).get(tag, ())


def _is_number(text: str, limit: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 17 and int(text) < limit


def index_of(tags: Mapping[str, Any]) -> RunIndex:
    """What the first report of a run froze, from its time series by tag.

    Raises:
        UnreadableError: if nothing of the run can be shown.
    """
    if OVERVIEW_TAG not in tags:
        raise UnreadableError("there is no overview of its layers")
    return read_index(tags[OVERVIEW_TAG].plugin_content)
