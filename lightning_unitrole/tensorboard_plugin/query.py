"""One request to the server of the tab: its parameters, checked, and the data that they name."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

from tensorboard import plugin_util
from tensorboard.data import provider
from werkzeug import wrappers

from lightning_unitrole.tensorboard_plugin.contents import Part
from lightning_unitrole.tensorboard_plugin.index import LayerIndex, RunIndex, UnreadableError, printable, read_index
from lightning_unitrole.tensorboard_plugin.reading import Series, read_series
from lightning_unitrole.tensorboard_plugin.schema import OVERVIEW_TAG, PLUGIN_NAME

logger = logging.getLogger(__name__)

ALL_STEPS = 1_000_000


class RequestError(Exception):
    """A request that cannot be answered: a status and a sentence for the reader."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Query:
    """One request: its parameters, checked, and the data that they name."""

    def __init__(self, data_provider: Any, request: wrappers.Request) -> None:
        self._provider = data_provider
        self._request = request
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
        if not (text.isascii() and text.isdigit() and len(text) < 17 and int(text) < limit):
            raise RequestError(400, f"The parameter {name!r} has to be a whole number from 0 to {limit - 1}.")
        return int(text)

    def optional(self, name: str, limit: int) -> int | None:
        """The same, or None where the parameter is left out."""
        return self.number(name, limit) if name in self._request.args else None

    @cached_property
    def runs(self) -> Mapping[str, Mapping[str, Any]]:
        """For each run, its time series by tag."""
        if self._provider is None:
            return {}
        found: Mapping[str, Mapping[str, Any]] = self._provider.list_tensors(
            self._context, experiment_id=self._experiment, plugin_name=PLUGIN_NAME
        )
        return found

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

    def read(self, tag: str, part: Part, step: int | None = None) -> Series:
        """All steps of one tag, or one, in order, the last word on each, without what cannot be read."""
        try:
            # Mostly it is the latest that is wanted, and reading one costs less than finding it among all.
            events = [] if step is None else self._events(tag, 1)
            if step is None or not any(event.step == step for event in events):
                events = self._events(tag, ALL_STEPS)
        except Exception as error:
            # TensorBoard decodes the tensors itself, and fails at one that does not hold what its shape says.
            logger.warning("The tag %r of the run %r cannot be read: %r", tag, self.run, error)
            return Series([], ["TensorBoard could not read what the log holds here."])
        return read_series([event for event in events if step is None or event.step == step], part)

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


def index_of(tags: Mapping[str, Any]) -> RunIndex:
    """What the first report of a run froze, from its time series by tag.

    Raises:
        UnreadableError: if nothing of the run can be shown.
    """
    if OVERVIEW_TAG not in tags:
        raise UnreadableError("there is no overview of its layers")
    return read_index(tags[OVERVIEW_TAG].plugin_content)
