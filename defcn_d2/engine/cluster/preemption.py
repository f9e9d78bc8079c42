"""SIGTERM and SIGUSR1, which clusters send before they take a machine away.

The first of them lets the step end, a checkpoint be written and the process exit with status
``RESUMABLE``; a second one ends it at once. Windows has no SIGUSR1, and its SIGTERM kills.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children, parent_process
from types import FrameType
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, distributed

from ...utils.detectron2_compat import data_loader_of, gloo_group

logger = logging.getLogger(__name__)

Handler = Callable[[int, FrameType | None], None] | signal.Handlers

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
#: Exit status of a run that is to be started again with --resume: EX_TEMPFAIL of sysexits.h.
RESUMABLE = 75
# Launchers forward a signal that a cluster has sent to every process already.
_SAME_SIGNAL = 0.5
# Seconds that a step may go on after a signal; a process that waits for one that is gone waits for
# ever, and launchers end it by SIGTERM.
_PATIENCE = 30.0


class Preempted(SystemExit):
    """Ends a process with status ``RESUMABLE``; the message says what to do."""

    def __init__(self, message: str):
        super().__init__(RESUMABLE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Preemption:
    """State of a process with regard to signals, from ``listening`` on.

    A signal counts at the end of a step (``steps``), so that all processes stop at the same one;
    outside of steps it raises ``Preempted`` at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._when = 0.0
        self._signal = 0
        self._waits = False  # for the end of a step
        self._steps = 0
        self._in_step = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block signals are handled; only in the main thread of a process."""
        main = threading.current_thread() is threading.main_thread()
        if not main or not hasattr(signal, "SIGUSR1"):  # Windows: no process gets a signal
            yield
            return
        receiver, sender = os.pipe()
        os.set_blocking(sender, False)
        with signals_handled_by(self._handle):
            wakeup = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(receiver,), daemon=True).start()
            try:
                yield
            finally:
                signal.set_wakeup_fd(wakeup)
                os.close(sender)  # ends the watch

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested:
            if now - self._when > _SAME_SIGNAL:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.requested, self._when, self._signal = True, now, number
        if self._waits:
            logger.warning("%s: stopping after this step or the next", signal.Signals(number).name)
        else:
            self.stop("nothing was trained since the last checkpoint")

    def _watch(self, receiver: int) -> None:
        """End a process whose step does not end, in a thread: the main one may hang in a wait."""
        with open(receiver, "rb", buffering=0) as signals:
            while received := signals.read(1):
                if received[0] in SIGNALS and self._in_step:
                    step = self._steps
                    time.sleep(_PATIENCE)
                    if self._in_step and self._steps == step:
                        print(
                            f"error: a step did not end within {_PATIENCE:.0f} s after a signal; "
                            "go on with --resume",
                            file=sys.stderr,
                            flush=True,
                        )
                        os._exit(RESUMABLE)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A step: from its begin on a signal waits until ``requested`` is asked for."""
        self._steps += 1
        self._in_step = self._waits = True
        try:
            yield
        finally:
            self._in_step = False

    @contextlib.contextmanager
    def preempted_at_once(self) -> Iterator[None]:
        """Within the block a signal raises ``Preempted``."""
        before, self._waits = self._waits, False
        try:
            if self.requested:
                self.stop("")
            yield
        finally:
            self._waits = before

    def stop(self, what: str) -> None:
        """Raise ``Preempted``."""
        name = signal.Signals(self._signal).name if self._signal else "a signal to another process"
        raise Preempted(f"stopped by {name}: {what}; go on with --resume")

    @contextlib.contextmanager
    def ignoring_signals(self) -> Iterator[None]:
        """Within the block signals are ignored where other processes may send them."""
        several = comm.get_world_size() > 1
        main = threading.current_thread() is threading.main_thread()
        with signals_handled_by(signal.SIG_IGN) if several and main else contextlib.nullcontext():
            yield


class Stops(HookBase):
    """Ends a run, in all processes after the same step, when one of them is asked to.

    The processes agree while the step goes on, and do not wait for it. The number of
    images that were skipped in this run, which goes into the metrics, travels with it.
    """

    def __init__(self, save_and_stop: Callable[..., None]):
        """
        Args:
            save_and_stop: raises ``Preempted``; with ``together`` True.
        """
        self._save_and_stop = save_and_stop
        self._sums = torch.zeros(0)
        self._work: Any = None

    def before_step(self) -> None:
        if comm.get_world_size() > 1:
            self._sums = self._counts()
            self._work = distributed.all_reduce(self._sums, group=gloo_group(), async_op=True)

    def after_step(self) -> None:
        if self._work is not None:  # what was known when the step began
            self._work.wait()
            asked, skipped = self._sums.tolist()
        else:
            asked, skipped = self._counts().tolist()
        if skipped:
            self.trainer.storage.put_scalar("skipped_images", skipped, smoothing_hint=False)
        if asked:
            self._save_and_stop(together=True)

    def _counts(self) -> Tensor:
        skipped = getattr(data_loader_of(self.trainer), "skipped", 0)
        return torch.tensor([self.trainer.preemption.requested, skipped], dtype=torch.int64)


def outlive_signals(worker: int) -> None:
    """Make a worker of a data loader go on when a signal is sent to all processes of a run.

    The process that it works for still needs it until the step ends. Only that one may end it, by
    SIGTERM as PyTorch does; a worker also ends by itself when that process is gone.
    """
    wakeup = signal.set_wakeup_fd(-1)
    if wakeup >= 0:
        os.close(wakeup)
    owner = parent_process()  # os.getppid() may be that of a fork server, which outlives it
    assert owner is not None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # not Linux
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != owner.pid:
            pass
        os._exit(0)

    def end_with_owner() -> None:
        owner.join()
        os._exit(1)

    for watch in (wait, end_with_owner):  # threads have the mask of the one that starts them
        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def forwarding_signals() -> Iterator[None]:
    """Within the block signals go on to the processes that this one has started by ``spawn``."""

    def forward(number: int, frame: FrameType | None) -> None:
        for child in active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    with signals_handled_by(forward):
        yield


@contextlib.contextmanager
def signals_handled_by(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    """Within the block ``SIGNALS`` go to this handler; then as before. For the main thread."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
