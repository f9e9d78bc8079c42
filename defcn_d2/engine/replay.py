"""Run a step again whose loss was not finite: python -m defcn_d2.engine.replay nonfinite_*.pth

A training that ends with such a loss leaves a dump of the weights and the images of that step. This
command computes its losses once more, of all images and of each one alone, and reports which
weights, images, predictions and gradients are not finite. KEY VALUE pairs change the config, to try
what would have helped; ``--anomaly`` names the operator whose gradient became NaN first.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..config.load import load_config
from ..utils.box_fields import box_fields, is_box_field
from ..utils.errors import UserError
from ..weights.reader import read_checkpoint
from .mixed_precision import PRECISIONS
from .nonfinite import FORMAT
from .reporting import reported
from .seeds import seed_generators

Batch = list[dict[str, Any]]
_SHOWN = 5  # of the tensors that are not finite


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 if all is finite this time, 3 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m defcn_d2.engine.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dump", help="file that the training has named")
    parser.add_argument("--device", help="such as cpu; the one of the training")
    parser.add_argument("--anomaly", action="store_true", help="trace gradients back (slow)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(arguments)
    dump = read_dump(args.dump)
    cfg = config_of(dump, [*args.opts, *(["MODEL.DEVICE", args.device] if args.device else [])])
    model = build_model(cfg)
    model.load_state_dict(dump["model"])
    model.train()
    print(f"iteration {dump['iteration']}, process {dump['rank']}")
    print_values("losses then", dump["losses"])
    faults = print_not_finite("weights", dict(model.named_parameters()))
    print_not_finite("statistics, after that step", dict(model.named_buffers()))  # no cause
    for batch in dump["batches"]:
        inputs = [to_input(image) for image in batch]
        for image in inputs:
            faults += print_not_finite(f"image {image.get('file_name', '?')!r}", tensors_of(image))
        seed_generators(dump["seed"], dump["rank"], dump["iteration"])
        faults += replay(model, cfg, inputs, args.anomaly)
    print("all is finite this time" if not faults else f"{faults} things are not finite")
    return 3 if faults else 0


def read_dump(path: str) -> dict[str, Any]:
    """The content of a dump.

    Raises:
        UserError: no such file, or of another kind.
    """
    if not Path(path).is_file():
        raise UserError(f"dump {path!r} does not exist; give the file that the training has named")
    dump = read_checkpoint(path)
    if dump.get("format") != FORMAT or "batches" not in dump:
        raise UserError(f"{path!r} is no dump of this version; give a nonfinite_*.pth")
    return dump


def config_of(dump: Mapping[str, Any], opts: Sequence[str]) -> CfgNode:
    """The config of the run, changed by ``opts``; the CPU where there is no GPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(dump["config"])
        cfg = load_config(str(path), opts).clone()
    cfg.defrost()
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def to_input(image: Mapping[str, Any]) -> dict[str, Any]:
    """An image of a dump in Detectron2's standard format."""
    inputs = dict(image)
    if "instances" in image:
        kept = image["instances"]
        boxes = {name: Boxes(x) for name, x in kept.items() if is_box_field(name)}
        inputs["instances"] = Instances(
            tuple(kept["image_size"]), gt_classes=kept["gt_classes"], **boxes
        )
    return inputs


def tensors_of(image: Mapping[str, Any]) -> dict[str, Tensor]:
    """Pixels and boxes of an image, by name."""
    tensors = {"pixels": image["image"]}
    if "instances" in image:
        tensors |= {name: boxes.tensor for name, boxes in box_fields(image["instances"]).items()}
    return tensors


def replay(model: nn.Module, cfg: CfgNode, inputs: Batch, anomaly: bool) -> int:
    """Compute a batch again; returns how many things are not finite."""
    faults = 0
    with precision_of(cfg), predictions_checked(model) as counts, anomaly_mode(anomaly):
        losses = model(inputs)
        faults += print_values(
            "losses now", {name: float(x.detach()) for name, x in losses.items()}
        )
        for image in inputs if len(inputs) > 1 else []:
            name = f"  of {image.get('file_name', '?')!r} alone"
            with torch.no_grad():
                print_values(name, {k: float(x) for k, x in model([image]).items()})
        faults += sum(counts[:1])
        model.zero_grad()
        sum(losses.values()).backward()
    gradients = {k: x.grad for k, x in model.named_parameters() if x.grad is not None}
    return faults + print_not_finite("gradients", gradients)


def precision_of(cfg: CfgNode) -> contextlib.AbstractContextManager:
    """The precision in which the network ran, as a context."""
    if not cfg.SOLVER.AMP.ENABLED:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(cfg.MODEL.DEVICE).type, PRECISIONS[cfg.SOLVER.AMP.PRECISION])


def anomaly_mode(enabled: bool) -> contextlib.AbstractContextManager:
    """PyTorch's detection of anomalies, if asked for."""
    return torch.autograd.detect_anomaly() if enabled else contextlib.nullcontext()


@contextlib.contextmanager
def predictions_checked(model: Any) -> Iterator[list[int]]:
    """Check what a DeFCN predicts within the block; gives the counts of each forward."""
    counts: list[int] = []
    if not hasattr(model, "predict_all"):
        yield counts
        return
    predict_all = model.predict_all

    def checked(images: Tensor) -> Any:
        priors, sets = predict_all(images)
        parts: dict[str, Tensor] = {}
        for name, predictions in sets.items():
            fields = {**vars(predictions), **predictions.extra}
            prefix = "" if name == "main" else f"{name}."
            parts |= {f"{prefix}{k}": x for k, x in fields.items() if isinstance(x, Tensor)}
        title = "predictions" if not counts else "  predictions"
        counts.append(print_not_finite(title, parts))
        return priors, sets

    model.predict_all = checked
    try:
        yield counts
    finally:
        del model.predict_all


def print_values(title: str, values: Mapping[str, float]) -> int:
    """Print numbers; returns how many are not finite."""
    print(f"{title}: " + ", ".join(f"{name} {x:.6g}" for name, x in values.items()))
    return sum(not torch.tensor(x).isfinite() for x in values.values())


def print_not_finite(title: str, tensors: Mapping[str, Tensor]) -> int:
    """Print what is not finite; returns how many of the tensors have such values."""
    bad = {name: x for name, x in tensors.items() if not x.isfinite().all()}
    for name, x in list(bad.items())[:_SHOWN]:
        print(f"{title}: {name} has {int((~x.isfinite()).sum())} of {x.numel()} not finite")
    if len(bad) > _SHOWN:
        print(f"{title}: and {len(bad) - _SHOWN} more")
    return len(bad)


if __name__ == "__main__":
    sys.exit(run())
