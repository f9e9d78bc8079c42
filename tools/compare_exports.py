#!/usr/bin/env python
"""AP, latency and size of a model's exports, beside PyTorch's; prints Markdown.

    python tools/compare_exports.py --config-file output/config.yaml \\
        --weights output/model_final.pth --int8 datasets/coco/train2017

The AP is that of the config's first test set; latencies are of one image of the usual size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import interleave, machine, markdown
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from defcn_d2.engine import Predictor, Trainer
from defcn_d2.engine.predictor import require_defcn
from defcn_d2.engine.reporting import reported
from defcn_d2.export import FORMATS, DeployedDetector, RawDetector, describe
from defcn_d2.export.detector import Outputs
from defcn_d2.export.export_command import default_topk, read_calibration
from defcn_d2.export.raw_detector import fitted
from defcn_d2.modeling.inference import keep_best
from defcn_d2.modeling.meta_arch import DeFCN, postprocess
from defcn_d2.utils.command_line import add_model_arguments, input_files, trained_config
from defcn_d2.utils.files import check_outputs, write_atomically

PRECISIONS = ("float32", "float16", "int8")


class Exported:
    """An export in the place of the model, for evaluators."""

    def __init__(
        self,
        run: Callable[[torch.Tensor], Outputs],
        model: DeFCN,
        size: tuple[int, int] | None = None,
    ):
        self.run = run
        self.model = model
        self.size = size

    def __call__(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As ``DeFCN.forward`` in inference, an image at a time."""
        found = [self._detect(x["image"].float()) for x in inputs]
        return postprocess(found, inputs)

    def _detect(self, image: torch.Tensor) -> Instances:
        sides, scale = tuple(image.shape[1:]), 1.0
        if self.size is not None:
            image, scale = fitted(image, self.size, self.model.pixel_mean)
        boxes, scores, classes = (values[0] for values in self.run(image[None]))
        found = Instances(sides)
        found.pred_boxes, found.scores, found.pred_classes = Boxes(boxes / scale), scores, classes
        found = found[scores > self.model.score_thresh]
        return keep_best(found, self.model.max_detections, self.model.nms_thresh)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="AP, latency and size of exports.")
    add_model_arguments(parser)
    parser.add_argument(
        "--formats", nargs="+", default=["onnx", "openvino"], choices=list(FORMATS), help="which"
    )
    parser.add_argument("--int8", metavar="FILES", help="images for INT8; default: no INT8")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="as of export.py --raw"
    )
    parser.add_argument("--rounds", type=int, default=30, help="calls for latencies [%(default)s]")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there, too")
    return parser.parse_args(arguments)


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    args = parse_arguments(arguments)
    cfg = trained_config(args)
    if args.output:
        check_outputs([args.output], input_files(args, cfg), "--output")
    cfg.defrost()
    cfg.TEST.WITH_NMS = False
    cfg.freeze()
    predictor = Predictor(cfg, device="cpu", confidence=None)
    model, cfg = require_defcn(predictor.model, "is exported"), predictor.cfg
    size = tuple(args.size) if args.size else None
    calibration = read_calibration(args.int8, predictor, size) if args.int8 else []
    models: dict[str, Callable[[list[dict[str, Any]]], Any]] = {"PyTorch float32": model}
    megabytes = {"PyTorch float32": "-"}
    for kind in args.formats:
        for precision in PRECISIONS:
            if precision == "int8" and (not calibration or kind == "exported"):
                continue
            deployed = DeployedDetector(model, default_topk(cfg), half=precision == "float16")
            detector = RawDetector(deployed, size) if size else deployed
            images = calibration if precision == "int8" else []
            artifact = FORMATS[kind](detector, describe(cfg, deployed, size), images)
            name = f"{kind} {precision}"
            models[name] = Exported(artifact.run, model, size)
            stored = len(artifact.content) + len(artifact.weights or b"")
            megabytes[name] = f"{stored / 1e6:.1f}"
    dataset = cfg.DATASETS.TEST[0]
    loader = Trainer.build_test_loader(cfg, dataset)
    figures = {}
    for name, one in models.items():
        evaluator = Trainer.build_evaluator(cfg, dataset)
        figures[name] = inference_on_dataset(one, loader, evaluator)["bbox"]
    inputs = next(iter(loader))
    with torch.no_grad():
        calls = {name: lambda one=one: one(inputs) for name, one in models.items()}
        samples = interleave(calls, args.rounds)
    names = [name for name in ("AP", "AP50", "AP75") if name in figures["PyTorch float32"]]
    rows = [
        [name, *(f"{figures[name][x]:.2f}" for x in names), str(samples[name]), megabytes[name]]
        for name in models
    ]
    sides = " x ".join(map(str, size or inputs[0]["image"].shape[1:]))
    note = f"{machine('cpu')}; {dataset}; latencies of an image of {sides}"
    text = f"{note}\n\n{markdown(['', *names, 'ms (quartiles)', 'MB'], rows)}\n"
    print(text)
    if args.output:
        write_atomically(args.output, text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(run())
