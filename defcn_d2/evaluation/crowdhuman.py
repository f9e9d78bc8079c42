"""CrowdHuman's evaluation: a Detectron2 evaluator, and a command for a file of detections:

    python -m defcn_d2.evaluation.crowdhuman GT.odgt RESULTS.json \\
        [--images DIR] [--output FIGURES.json]

RESULTS.json is a list in COCO's results format: ``image_id`` is the ID of a line of GT.odgt,
``bbox`` is x, y, width, height in pixels, and ``score``. All its detections count, whatever their
category.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..data.errors import DatasetError
from ..data.readers.crowdhuman import read_images
from ..data.readers.odgt import OdgtImage
from ..utils.errors import UserError
from ..utils.files import check_outputs, write_atomically
from . import crowdhuman_metrics as metrics
from .results import NO_DETECTIONS, Detections, dump_results, read_results

logger = logging.getLogger(__name__)

RESULTS_FILE, FIGURES_FILE = "coco_instances_results.json", "crowdhuman_figures.json"

RULES = (
    "a match is an IoU > 0.5 with a free person; an ignore region absorbs what lies in it by more "
    "than half; AP50 is over raw precision"
)


def evaluate_detections(images: Sequence[OdgtImage], detections: Detections) -> dict[str, float]:
    """The figures of ``crowdhuman_metrics.evaluate``; an image without detections has misses only.

    Args:
        images: ground truth, with sizes.
        detections: by image ID.
    """
    samples = []
    for image in images:
        assert image.size is not None
        found = detections.get(image.id, NO_DETECTIONS)
        gts = np.concatenate([image.boxes[:, :2], image.boxes[:, :2] + image.boxes[:, 2:]], axis=1)
        samples.append(
            metrics.Sample.build(gts, image.ignored, found[:, :4], found[:, 4], image.size)
        )
    try:
        return metrics.evaluate(samples)
    except ValueError as error:
        raise DatasetError(f"nothing to evaluate: {error}") from error


def protocol(images: Sequence[OdgtImage], detections: Detections) -> list[str]:
    """The conditions of the figures, by which published numbers differ."""
    counts = [len(found) for found in detections.values()]
    lowest = min((found[:, 4].min() for found in detections.values() if len(found)), default=None)
    regions = sum(int(image.ignored.sum()) for image in images)
    positives = sum(len(image.boxes) for image in images) - regions
    return [
        f"{len(images)} images, {positives} persons, {regions} ignore regions",
        f"{sum(counts)} detections, at most {max(counts, default=0)} an image"
        + (f", scores from {lowest:.3g}" if lowest is not None else ""),
        RULES,
    ]


def report(figures: Mapping[str, float], protocol_lines: Sequence[str]) -> str:
    """Figures and protocol as text for people."""
    names = list(figures)
    table = tabulate(
        [[f"{figures[name]:.3f}" for name in names]], names, tablefmt="pipe", disable_numparse=True
    )
    return "\n".join([table, *(f"protocol: {line}" for line in protocol_lines)])


class CrowdHumanEvaluator(DatasetEvaluator):
    """AP50, mMR, recall, JI and the end-to-end figures of a data set in CrowdHuman's format.

    The results are {"bbox": figures}, see ``crowdhuman_metrics.evaluate``. With several processes
    the main one gathers the detections of all, and alone returns results.
    """

    def __init__(self, dataset_name: str, distributed: bool = True, output_dir: str | None = None):
        """
        Args:
            dataset_name: registered, with ``odgt_file`` and ``image_root`` in its metadata.
            distributed: gather from all processes; otherwise evaluate this one's detections.
            output_dir: folder for the detections, in COCO's results format, and the figures.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if not hasattr(metadata, "odgt_file"):
            raise DatasetError(
                f"data set {dataset_name!r} is not in CrowdHuman's format: its metadata have no "
                "odgt_file; use register_crowdhuman"
            )
        self._odgt = Path(metadata.odgt_file)
        self._image_root = Path(metadata.image_root)
        self._distributed = distributed
        self._output_dir = Path(output_dir) if output_dir else None
        self.reset()

    def reset(self) -> None:
        self._detections: dict[str, np.ndarray] = {}
        self._input_sizes: set[tuple[int, int]] = set()  # short and long side

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the ``instances`` of the outputs, their boxes in pixels of the image as stored."""
        for item, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            scores = instances.scores[:, None]
            person = torch.ones_like(scores)  # category_id 1, as COCO has it
            columns = [instances.pred_boxes.tensor, scores, person]
            found = torch.cat([column.double() for column in columns], dim=1)
            self._detections[item["image_id"]] = found.numpy()
            height, width = item["image"].shape[-2:]
            self._input_sizes.add((min(height, width), max(height, width)))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """{"bbox": figures} on the main process; on others, and without detections, nothing."""
        parts = [(self._detections, self._input_sizes)]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return {}
        detections = {image_id: found for part, _ in parts for image_id, found in part.items()}
        if not detections:
            logger.warning("no predictions to evaluate")
            return {}
        sizes = [size for _, part in parts for size in part]
        images = read_images(self._odgt, self._image_root)
        figures = evaluate_detections(images, detections)
        lines = protocol(images, detections)
        lines.append(
            f"input: short side {min(sizes)[0]} to {max(sizes)[0]}, long side at most "
            f"{max(long for _, long in sizes)}"
        )
        logger.info("CrowdHuman figures of %s:\n%s", self._odgt, report(figures, lines))
        if self._output_dir:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(self._output_dir / RESULTS_FILE, dump_results(detections))
            write_atomically(self._output_dir / FIGURES_FILE, json.dumps(figures).encode())
        return {"bbox": figures}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m defcn_d2.evaluation.crowdhuman",
        description="Evaluate a file of detections as CrowdHuman does.",
    )
    parser.add_argument("gt", type=Path, metavar="GT.odgt", help="annotations, a line an image")
    parser.add_argument(
        "results",
        type=Path,
        metavar="RESULTS.json",
        help="detections in COCO's results format; image_id is the ID of a line, bbox is xywh",
    )
    parser.add_argument(
        "--images", type=Path, help="folder of ID.jpg, where lines have no width and height"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FIGURES.json", help="write the figures here"
    )
    args = parser.parse_args(arguments)
    try:
        check_outputs(filter(None, [args.output]), [args.gt, args.results], "--output")
        images = read_images(args.gt, args.images)
        detections = read_results(args.results, [image.id for image in images])
        figures = evaluate_detections(images, detections)
        print(report(figures, protocol(images, detections)))
        if args.output:
            write_atomically(args.output, json.dumps(figures, indent=1).encode() + b"\n")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: cannot write {args.output}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
