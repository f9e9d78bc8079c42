"""The pictures of ``make demo``: curves of a run, and detections beside the ground truth."""

import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from defcn_d2.engine import Predictor, load_config
from defcn_d2.engine.cpu import use_cpu

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

# BGR, one a class, told apart on any ground by their dark rim.
COLORS = ((60, 60, 255), (60, 200, 255), (80, 220, 80), (255, 200, 60), (255, 90, 90))
COLORS += ((255, 80, 220), (200, 255, 255), (160, 160, 160))
TILE = 440  # pixels, the side of an image in the grid
CAPTION = 34  # pixels above it


def load_cfg(config_file: Path, opts: list[str]) -> CfgNode:
    """The config, for the CPU where there is no GPU."""
    cfg = load_config(str(config_file), opts)
    return cfg if torch.cuda.is_available() else use_cpu(cfg)


def load_data(cfg: CfgNode) -> None:
    """Have the data sets of a config drawn, if they are not there."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        print(f"{name}: {len(DatasetCatalog.get(name))} images")


def draw_curves(metrics: Path, output: Path) -> None:
    """Losses and AP over the iterations, from a ``metrics.json``."""
    rows = []
    for line in metrics.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the line at which an earlier run was killed
            continue
    figure, (losses, scores) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for key in sorted({key for row in rows for key in row if key.startswith("loss_")}):
        points = {row["iteration"]: row[key] for row in rows if key in row}
        losses.plot(*zip(*sorted(points.items())), label=key)
    losses.set(title="Training losses", xlabel="iteration", ylabel="loss", ylim=(0, None))
    losses.legend()
    for task, label in (("bbox", "without NMS"), ("bbox_nms", "with NMS")):
        for metric, style in (("AP", "-"), ("AP50", "--")):
            key = f"{task}/{metric}"
            points = {row["iteration"]: row[key] for row in rows if key in row}
            color = "tab:blue" if task == "bbox" else "tab:orange"
            line = sorted(points.items())
            scores.plot(*zip(*line), style, marker="o", color=color, label=f"{metric} {label}")
    scores.set(title="Validation", xlabel="iteration", ylabel="percent", ylim=(0, 100))
    scores.legend(loc="lower right")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def draw_detections(
    cfg: CfgNode, weights: Path, output: Path, count: int = 8, threshold: float = 0.3
) -> None:
    """A grid of validation images: ground truth on the left, detections on the right of each."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(weights)
    predictor = Predictor(cfg)
    name = cfg.DATASETS.TEST[0]
    records = [r for r in DatasetCatalog.get(name) if len(r["annotations"]) >= 3][:count]
    classes = MetadataCatalog.get(name).thing_classes
    pairs = []
    for record in records:
        image = cv2.imread(record["file_name"])
        truth = [
            (BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), a["category_id"], None)
            for a in record["annotations"]
        ]
        found = predictor(np.ascontiguousarray(image[:, :, ::-1]))
        found = found[found.scores >= threshold]
        detections = list(
            zip(
                found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores.tolist()
            )
        )
        left = _tile(image, truth, classes, "ground truth")
        right = _tile(image, detections, classes, f"detections, score >= {threshold}")
        pairs.append(np.hstack([left, right]))
    if len(pairs) % 2:
        pairs.append(np.full_like(pairs[0], 255))
    gap = np.full((pairs[0].shape[0], 24, 3), 255, np.uint8)
    rows = [np.hstack([pairs[i], gap, pairs[i + 1]]) for i in range(0, len(pairs), 2)]
    cv2.imwrite(str(output), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])


def _tile(image: np.ndarray, boxes: list, classes: list[str], caption: str) -> np.ndarray:
    """The image enlarged, with boxes and names, under a caption."""
    scale = (TILE - 8) / max(image.shape[:2])
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    labels: list[tuple[int, int, int, int]] = []
    for box, category, score in sorted(boxes, key=lambda entry: entry[0][1]):
        x1, y1, x2, y2 = (round(v * scale) for v in box)
        color = COLORS[category % len(COLORS)]
        cv2.rectangle(large, (x1, y1), (x2, y2), (0, 0, 0), 3)
        cv2.rectangle(large, (x1, y1), (x2, y2), color, 1)
        text = classes[category] if score is None else f"{classes[category]} {score:.2f}"
        _label(large, text, x1, y1, color, labels)
    tile = np.full((TILE + CAPTION, TILE, 3), 255, np.uint8)
    tile[CAPTION : CAPTION + large.shape[0], : large.shape[1]] = large
    cv2.putText(
        tile, caption, (2, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.62, (40, 40, 40), 1, cv2.LINE_AA
    )
    return tile


def _label(
    image: np.ndarray, text: str, x: int, y: int, color: tuple, taken: list[tuple[int, ...]]
) -> None:
    """Write a box's name at its top, lower where another name stands already."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
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
    cv2.putText(
        image,
        text,
        (x + 2, y + height - 4),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.45,
        (0, 0, 0),
        1,
        cv2.LINE_AA,
    )
