"""Batches of a training that depend on its seed and on their number alone, and of evaluations."""

import logging
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..data.mapper import SKIPPED, ImageError, Record
from ..data.mixing import Mixing
from ..utils.detectron2_compat import training_sampler
from ..utils.errors import UserError
from .cluster.preemption import outlive_signals
from .seeds import seeded_generators

logger = logging.getLogger(__name__)

# What is drawn: its place in the stream of all processes, and the index of its record.
Draw = tuple[int, int]
# A draw with the share of the training that is done before its step.
Order = tuple[int, int, float]
# So many broken images in a row are no exception: the data are at fault, or the mapper.
_MAX_TRIES = 10
_FILES_SHOWN = 16


_DEAD_WORKER = re.compile(r"DataLoader worker \(pid\S* [^)]*\)[^\n.]*")


class LoaderError(UserError, RuntimeError):
    """A worker of the data loader has died."""

    def __init__(self, worker: str, files: Sequence[str]):
        """
        Args:
            worker: what PyTorch says of it.
            files: that workers were to load when it happened.
        """
        shown = ", ".join(map(repr, files[:_FILES_SHOWN]))
        more = f" and {len(files) - _FILES_SHOWN} more" if len(files) > _FILES_SHOWN else ""
        super().__init__(
            f"a process that loads data is gone ({worker}), with these images to load: {shown}"
            f"{more}. Most likely memory was short: lower DATALOADER.NUM_WORKERS; go on with "
            "--resume"
        )


class TrainingLoader:
    """The batches of this process, one after the other, without end.

    Detectron2's samplers and its grouping by aspect ratio decide what is in a batch; how an image
    is augmented, and with which others it is mixed, depends on its place in the stream and on the
    number of its step. So batch n is the same with any number of workers, and after any number of
    interruptions. Before the first batch is taken, ``seed`` and ``start``, the number of batches to
    leave out, can be set.
    """

    def __init__(
        self,
        cfg: CfgNode,
        records: Sequence[Record],
        mapper: Callable[[Record], Record | None],
        total_batch_size: int,
    ):
        """
        Args:
            cfg: whose ``DATALOADER``, ``SEED``, and for mixing ``INPUT`` and ``SOLVER`` count.
            records: in Detectron2's standard format.
            mapper: raises ``ImageError`` for what cannot be loaded.
            total_batch_size: of all processes.
        """
        self.seed = max(0, cfg.SEED)
        self.start = 0
        self.skipped = 0
        self._cfg = cfg
        self._mapper = mapper
        self._mixing = Mixing.from_config(cfg)
        self._batch_size = total_batch_size // comm.get_world_size()
        self._is_wide = [
            cfg.DATALOADER.ASPECT_RATIO_GROUPING and record["width"] > record["height"]
            for record in records
        ]
        self._records = DatasetFromList(list(records), copy=False)  # in memory that workers share
        self._names_told: set[str] = set()

    def __iter__(self) -> Iterator[list[Record]]:
        skip = self._cfg.DATALOADER.ON_ERROR == "skip"
        images = TrainingImages(self._records, self._mapper, self.seed, skip, self._mixing)
        drawn: deque[list[Order]] = deque()  # what the workers have to do, or have done
        loader = DataLoader(
            images,
            batch_sampler=_noting(islice(self._orders(), self.start, None), drawn),
            num_workers=self._cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # the default one stays as it is
        )
        try:
            for batch in loader:
                drawn.popleft()
                self._count_skipped(batch)
                yield batch
        except RuntimeError as error:
            if worker := _DEAD_WORKER.search(str(error)):
                raise LoaderError(worker[0], self._files_of(drawn)) from error
            raise

    def _files_of(self, batches: Iterable[list[Order]]) -> list[str]:
        drawn = [self._records[i] for batch in batches for _, i, _ in batch]
        return [str(record.get("file_name", "?")) for record in drawn]

    def _orders(self) -> Iterator[list[Order]]:
        solver = self._cfg.SOLVER
        for number, batch in enumerate(self._batches()):
            progress = number // solver.ACCUMULATE / solver.MAX_ITER
            yield [(position, index, progress) for position, index in batch]

    def _batches(self) -> Iterator[list[Draw]]:
        rank, processes = comm.get_rank(), comm.get_world_size()
        indices = enumerate(build_sampler(self._cfg, self._records, self._mapper, self.seed))
        draws = ((rank + i * processes, index) for i, index in indices)
        return grouped_by_orientation(draws, self._is_wide, self._batch_size)

    def _count_skipped(self, batch: list[Record]) -> None:
        for problems in (x.pop(SKIPPED, ()) for x in batch):
            self.skipped += len(problems)
            for problem in problems:
                if problem not in self._names_told:
                    self._names_told.add(problem)
                    logger.warning("Skipped: %s (%d images so far)", problem, self.skipped)


class TrainingImages(Dataset):
    """Images by their order."""

    def __init__(
        self,
        records: DatasetFromList,
        mapper: Callable[[Record], Record | None],
        seed: int,
        skip: bool,
        mixing: Mixing | None = None,
    ):
        """
        Args:
            skip: broken images are replaced by others, which say so under ``SKIPPED``.
            mixing: what images are mixed with others by.
        """
        self.records = records
        self.mapper = mapper
        self.seed = seed
        self.skip = skip
        self.mixing = mixing

    def __getitem__(self, order: Order) -> Record:
        position, index, progress = order
        problems: list[str] = []
        with seeded_generators(self.seed, position):
            image = self._load(index, problems)
            if self.mixing is not None:
                image = self.mixing(image, lambda: self._another(problems), progress)
        return {**image, SKIPPED: problems} if problems else image

    def _another(self, problems: list[str]) -> Record:
        return self._load(random.randrange(len(self.records)), problems)

    def _load(self, index: int, problems: list[str]) -> Record:
        for _ in range(_MAX_TRIES):
            try:
                image = self.mapper(self.records[index])
            except ImageError as error:
                if not self.skip:
                    raise
                image = None
                problems.append(str(error))
            if image is not None:
                return image
            index = random.randrange(len(self.records))  # a mapper's None: another one, please
        last = f"; the last: {problems[-1]}" if problems else ""
        raise ImageError(f"{_MAX_TRIES} images in a row cannot be loaded{last}")


class EvaluationLoader(DataLoader):
    """Detectron2's loader for evaluations: each image once, one a batch; reports skipped ones."""

    def __init__(
        self,
        records: Sequence[Record],
        mapper: Callable[[Record], Record | None],
        num_workers: int,
    ):
        super().__init__(
            MapDataset(DatasetFromList(list(records), copy=False), mapper),
            sampler=InferenceSampler(len(records)),
            num_workers=num_workers,
            collate_fn=list,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Any:
        skipped = 0
        for batch in super().__iter__():
            for problem in [x[SKIPPED] for x in batch if SKIPPED in x]:
                skipped += 1
                logger.warning("Counts as an image without detections: %s", problem)
            yield batch
        if skipped:
            logger.warning("%d images of this evaluation could not be loaded", skipped)


def build_sampler(cfg: CfgNode, records: Dataset, mapper: Callable, seed: int) -> Iterable[int]:
    """Detectron2's sampler ``DATALOADER.SAMPLER_TRAIN``, with a seed.

    v0.5 gives its samplers none, and some of the later ones draw from NumPy's generator.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    with seeded_generators(seed):
        return training_sampler(cfg, records, mapper, seed)


def _noting(batches: Iterable[list[Order]], drawn: deque[list[Order]]) -> Iterator[list[Order]]:
    for batch in batches:
        drawn.append(batch)
        yield batch


def grouped_by_orientation(
    draws: Iterable[Draw], is_wide: Sequence[bool], batch_size: int
) -> Iterator[list[Draw]]:
    """Batches of draws whose images are all wide, or all not; in the order they become full.

    Args:
        draws: in the order of the sampler.
        is_wide: of each record.
        batch_size: draws in a batch.
    """
    groups: tuple[list[Draw], list[Draw]] = [], []
    for draw in draws:
        group = groups[is_wide[draw[1]]]
        group.append(draw)
        if len(group) == batch_size:
            yield group[:]
            group.clear()
