"""The data of ``make demo``, and the curves of its run."""

from pathlib import Path

import torch
from demo_results import read_metrics
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from defcn_d2.config.load import load_config
from defcn_d2.engine.cpu import use_cpu


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
