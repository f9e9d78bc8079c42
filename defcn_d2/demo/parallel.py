"""Images through several GPUs, one process each; results come in the order of the images."""

import queue
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import multiprocessing

from ..engine import Predictor
from ..engine.reporting import describe
from ..utils.errors import UserError

T = TypeVar("T")
Item = tuple[T, np.ndarray]
Result = tuple[T, np.ndarray, Instances]

# Images under way for each process: one that it works on, the others ready for it.
_AHEAD = 3
_POLL = 1.0  # seconds after which it is looked whether all processes live


def one_by_one(
    detect: Callable[[np.ndarray], Instances], items: Iterable[Item]
) -> Iterator[Result]:
    """(tag, RGB image) to (tag, image, detections), in this process."""
    for tag, image in items:
        yield tag, image, detect(image)


def gpus(cfg: CfgNode) -> list[str]:
    """The devices that ``--parallel`` uses: all GPUs, or the config's one device."""
    if cfg.MODEL.DEVICE == "cpu":
        return ["cpu"]
    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


class Workers:
    """One process a device, each with the whole model; a context manager, which ends them."""

    def __init__(self, cfg: CfgNode, devices: list[str]):
        """
        Args:
            cfg: with MODEL.WEIGHTS.
            devices: such as ["cuda:0", "cuda:1"].
        """
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._tasks = context.Queue()
        self._results = context.Queue()
        self._processes = [
            context.Process(
                target=_work, args=(_on(cfg, device), self._tasks, self._results), daemon=True
            )
            for device in devices
        ]

    def __enter__(self) -> "Workers":
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tasks.cancel_join_thread()  # images that nobody will take must not keep this one
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()

    def __call__(self, items: Iterable[Item]) -> Iterator[Result]:
        """As ``one_by_one``, with up to three images a process read ahead.

        Raises:
            UserError: a process cannot load the model, or has died.
        """
        ahead: deque[Item] = deque()
        arrived: dict[int, Instances] = {}
        sent = given = 0
        for item in items:
            self._tasks.put((sent, item[1]))
            ahead.append(item)
            sent += 1
            if len(ahead) >= _AHEAD * len(self._processes):
                yield (*ahead.popleft(), self._take(given, arrived))
                given += 1
        while ahead:
            yield (*ahead.popleft(), self._take(given, arrived))
            given += 1

    def _take(self, number: int, arrived: dict[int, Instances]) -> Instances:
        """The detections of image ``number``; what comes before them is put by."""
        while number not in arrived:
            try:
                index, value = self._results.get(timeout=_POLL)
            except queue.Empty:
                self._check_alive()
                continue
            if index is None:
                raise UserError(value)
            arrived[index] = _unpack(value)
        return arrived.pop(number)

    def _check_alive(self) -> None:
        for process in self._processes:
            if not process.is_alive():
                raise UserError(
                    f"a process of --parallel has ended (exit code {process.exitcode}; -9 is for "
                    "want of memory, often): try without --parallel"
                )


def _on(cfg: CfgNode, device: str) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    cfg.freeze()
    return cfg


def _work(cfg: CfgNode, tasks: Any, results: Any) -> None:
    """The body of a process: numbered images in, numbered arrays out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one
    torch.set_num_threads(1 if cfg.MODEL.DEVICE == "cpu" else torch.get_num_threads())
    try:
        predictor = Predictor(cfg)
        while True:
            number, image = tasks.get()
            results.put((number, _pack(predictor(image))))
    except Exception as error:
        text = describe(error) or f"{type(error).__name__}: {error}"
        results.put((None, f"a process of --parallel on {cfg.MODEL.DEVICE} failed: {text}"))


def _pack(found: Instances) -> tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]:
    """Arrays in place of tensors, which would be shared memory for each small result."""
    boxes = found.pred_boxes.tensor.numpy()
    return found.image_size, boxes, found.scores.numpy(), found.pred_classes.numpy()


def _unpack(value: tuple[tuple[int, int], np.ndarray, np.ndarray, np.ndarray]) -> Instances:
    size, boxes, scores, classes = value
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(boxes)),
        scores=torch.from_numpy(scores),
        pred_classes=torch.from_numpy(classes),
    )
