"""A progress bar for long work that looks like the trainer's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def trainer_progress(trainer: Any, total: int, description: str) -> Iterator[Callable[[], None]]:
    """A bar in the style of the trainer's progress bar callback, gone when the work is done.

    Args:
        trainer: a Lightning trainer. Where it shows no progress, neither does this.
        total: number of steps.
        description: what is going on.

    Yields:
        A function to call after each step.
    """
    bar = trainer.progress_bar_callback
    if total == 0 or bar is None or bar.is_disabled or not trainer.is_global_zero:
        yield lambda: None
    elif getattr(bar, "progress", None) is not None and hasattr(bar.progress, "add_task"):
        task = bar.progress.add_task(description, total=total)
        try:
            yield lambda: bar.progress.update(task, advance=1, refresh=True)
        finally:
            bar.progress.remove_task(task)
    else:
        from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

        with Tqdm(total=total, desc=description, leave=False, dynamic_ncols=True) as shown:
            yield lambda: shown.update(1)
