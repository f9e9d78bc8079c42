"""The pictures of ``make demo``: curves of a run, and detections beside the ground truth."""

from pathlib import Path

import cv2
import numpy as np
import torch
from demo_results import read_metrics
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defcn_d2.engine import Predictor, load_config
from defcn_d2.engine.cpu import use_cpu

# A box (x0, y0, x1, y1), its class, and its score if it is a detection.
Entry = tuple[list[float], int, float | None]

# BGR, one a class, told apart on any ground by their dark rim.
COLORS = [
    *((60, 60, 255), (60, 200, 255), (80, 220, 80), (255, 200, 60)),
    *((255, 90, 90), (255, 80, 220), (200, 255, 255), (160, 160, 160)),
]
TILE = 440  # pixels, the side of an image in the grid
CAPTION = 34  # pixels above it
GAP = 24  # pixels between pairs
FONT = cv2.FONT_HERSHEY_SIMPLEX


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
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    predictor = Predictor(cfg)
    name = cfg.DATASETS.TEST[0]
    # images with something to see; the rest only where those are few
    records = sorted(DatasetCatalog.get(name), key=lambda record: len(record["annotations"]) < 3)
    classes = MetadataCatalog.get(name).thing_classes
    pairs = []
    for record in records[:count]:
        image = cv2.imread(record["file_name"])
        assert image is not None, record["file_name"]
        truth: list[Entry] = [
            (BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), a["category_id"], None)
            for a in record["annotations"]
        ]
        found = predictor(np.ascontiguousarray(image[:, :, ::-1]))
        found = found[found.scores >= threshold]
        detections: list[Entry] = [
            (found.pred_boxes.tensor[i].tolist(), int(found.pred_classes[i]), float(score))
            for i, score in enumerate(found.scores)
        ]
        left = _tile(image, truth, classes, "ground truth")
        right = _tile(image, detections, classes, f"detections, score >= {threshold}")
        pairs.append(np.hstack([left, right]))
    if len(pairs) % 2:
        pairs.append(np.full_like(pairs[0], 255))
    gap = np.full((pairs[0].shape[0], GAP, 3), 255, np.uint8)
    rows = [np.hstack([pairs[i], gap, pairs[i + 1]]) for i in range(0, len(pairs), 2)]
    cv2.imwrite(str(output), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])


def _tile(image: np.ndarray, entries: list[Entry], classes: list[str], caption: str) -> np.ndarray:
    """The image enlarged, with boxes and names, under a caption."""
    scale = (TILE - 8) / max(image.shape[:2])
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    labels: list[tuple[int, int, int, int]] = []
    entries = sorted(entries, key=lambda entry: entry[0][1])
    for thickness, rim in ((4, (0, 0, 0)), (2, None)):
        for box, category, _ in entries:
            x0, y0, x1, y1 = (round(v * scale) for v in box)
            color = rim or COLORS[category % len(COLORS)]
            cv2.rectangle(large, (x0, y0), (x1, y1), color, thickness)
    for box, category, score in entries:  # names last, above all boxes
        text = classes[category] if score is None else f"{classes[category]} {score:.2f}"
        corner = round(box[0] * scale), round(box[1] * scale)
        _label(large, text, *corner, COLORS[category % len(COLORS)], labels)
    tile = np.full((TILE + CAPTION, TILE, 3), 255, np.uint8)
    tile[CAPTION : CAPTION + large.shape[0], : large.shape[1]] = large
    cv2.putText(tile, caption, (2, 24), FONT, 0.62, (40, 40, 40), 1, cv2.LINE_AA)
    return tile


def _label(
    image: np.ndarray,
    text: str,
    x: int,
    y: int,
    color: tuple[int, ...],
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Write a box's name at its top, lower where another name stands already."""
    (width, height), _ = cv2.getTextSize(text, FONT, 0.45, 1)
    width, height = width + 4, height + 6
    x = max(0, min(x, image.shape[1] - width))
    y = max(0, y - height)
    while any(
        x < right and left < x + width and y < bottom and top < y + height
        for left, top, right, bottom in taken
    ):
        y += height
    taken.append((x, y, x + width, y + height))
    cv2.rectangle(image, (x, y), (x + width, y + height), color, -1)
    cv2.putText(image, text, (x + 2, y + height - 4), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
