"""The progress bar with the time left; plain lines where rich is missing or nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0  # seconds between plain lines


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Gives a function that is called with what begins now."""
    try:
        from rich import progress as bars
        from rich.console import Console
    except ModuleNotFoundError:
        yield _plain(total)
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(
        *columns, disable=not sys.stderr.isatty(), console=Console(stderr=True)
    ) as shown:
        if not sys.stderr.isatty():
            yield _plain(total)
            return
        task = shown.add_task("", total=total)
        done = -1

        def advance(what: str) -> None:
            nonlocal done
            done += 1
            shown.update(task, description=f"{what:50}", completed=done)

        yield advance
        shown.update(task, description=f"{'done':50}", completed=total)


def _plain(total: int) -> Callable[[str], None]:
    begun = time.monotonic()
    last, done = begun - EVERY, 0

    def advance(what: str) -> None:
        nonlocal last, done
        now = time.monotonic()
        if now - last >= EVERY:
            left = (now - begun) / done * (total - done) if done else 0.0
            line = f"{done} of {total}, {now - begun:.0f} s, {left:.0f} s left: {what}"
            print(line, file=sys.stderr, flush=True)
            last = now
        done += 1

    return advance
