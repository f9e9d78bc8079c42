"""A ``map`` over worker processes that leaves nothing behind."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

_CHUNK = 16  # items that a worker takes at a time


@contextlib.contextmanager
def mapping(workers: int, items: int) -> Iterator[Callable[..., Any]]:
    """A ``map`` in order for about ``items`` items; few items or one worker stay in this process.

    An error in the block or in a worker drops what has not begun.
    """
    workers = min(workers, -(-items // _CHUNK))
    if workers <= 1:
        yield map
        return
    # fork, since a spawned worker would import the caller's script and all of Detectron2 again
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _become_worker)
    try:
        yield functools.partial(pool.map, chunksize=_CHUNK)
    finally:
        pool.shutdown(cancel_futures=True)


def _become_worker() -> None:
    """Leave interrupts to the parent, but do not outlive it: a worker inherits its locks."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
