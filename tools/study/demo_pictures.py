"""The pictures of ``make demo``: curves of a run, and detections beside the ground truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from demo_results import read_metrics
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defcn_d2.config.load import load_config
from defcn_d2.engine import Predictor
from defcn_d2.engine.cpu import use_cpu
from defcn_d2.engine.predictor import read_rgb
from defcn_d2.visualization.boxes import Mark, grid, tile
from defcn_d2.visualization.colors import class_color
from defcn_d2.visualization.page import array_jpeg


def load_cfg(config_file: str, opts: list[str]) -> CfgNode:
    """The config, for the CPU where there is no GPU."""
    cfg = load_config(config_file, opts)
    return cfg if torch.cuda.is_available() else use_cpu(cfg)


def load_data(cfg: CfgNode) -> None:
    """Have the data sets of a config drawn, if they are not there."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        print(f"{name}: {len(DatasetCatalog.get(name))} images")


def draw_curves(metrics: Path, output: Path, iterations: int) -> None:
    """Losses and AP over the iterations, from a ``metrics.json``."""
    rows = read_metrics(metrics)

    def curve(key: str) -> tuple[list[float], list[float]]:
        points = {min(row["iteration"] + 1, iterations): row[key] for row in rows if key in row}
        return list(points), list(points.values())

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    losses, scores = figure.subplots(1, 2)
    for key in sorted({key for row in rows for key in row if key.startswith("loss_")}):
        losses.plot(*curve(key), label=key)
    losses.set(title="Training losses", xlabel="iteration", ylabel="loss", ylim=(0, None))
    for task, label, color in (
        ("bbox", "without NMS", "tab:blue"),
        ("bbox_nms", "with NMS", "tab:orange"),
    ):
        for metric, style in (("AP", "-"), ("AP50", "--")):
            points = curve(f"{task}/{metric}")
            scores.plot(*points, style, marker="o", color=color, label=f"{metric} {label}")
    scores.set(title="Validation", xlabel="iteration", ylabel="percent", ylim=(0, 100))
    for axes in (losses, scores):
        axes.set_xlim(0, iterations * 1.02)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output, dpi=110)


def draw_detections(
    cfg: CfgNode, weights: Path, output: Path, count: int = 8, threshold: float = 0.3
) -> None:
    """A grid of validation images: ground truth on the left, detections on the right of each."""
    predictor = Predictor(cfg, weights, confidence=threshold)
    name = cfg.DATASETS.TEST[0]
    # images with something to see; the rest only where those are few
    records = sorted(DatasetCatalog.get(name), key=lambda record: len(record["annotations"]) < 3)
    classes = MetadataCatalog.get(name).thing_classes
    pairs = []
    for record in records[:count]:
        image = read_rgb(record["file_name"])
        truth = [
            _mark(
                BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS),
                a["category_id"],
                classes[a["category_id"]],
            )
            for a in record["annotations"]
        ]
        found = predictor.detections(image)
        boxes, numbers = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()
        detections = [
            _mark(box, number, f"{classes[number]} {score:.2f}")
            for box, number, score in zip(boxes, numbers, found.scores.tolist())
        ]
        left = tile(image, truth, "ground truth")
        right = tile(image, detections, f"detections, score ≥ {threshold}")
        pairs.append(np.hstack([left, right]))
    output.write_bytes(array_jpeg(grid(pairs, 2, gap=24), quality=88))


def _mark(box: Sequence[float], number: int, text: str) -> Mark:
    return Mark(box, text, class_color(number))
