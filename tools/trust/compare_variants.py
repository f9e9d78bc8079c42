"""Compare losses, gradients and detections of every variant with a previous commit, bit for bit.

    python tools/trust/compare_variants.py HEAD~1
    python tools/trust/compare_variants.py HEAD~1 --variants POTO shapes/OneNet

Each variant of the commit is built small in a process per checkout, with the commit's weights in
both, and given batches of two images: both crowded, one without objects, both without. Equal are
then the names and all digits of the losses, the gradients of all parameters, the buffers after the
training step and the detections. The exit status is 1 if any variant differs.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
# What git does not know: without it the operators would be composed on one side.
BUILT = ["defcn_d2/_C*.so", "defcn_d2/ops/_build.json"]
# Keys of Detectron2 alone, which no commit renames: a ResNet-50 of a few channels, whose BatchNorm
# keeps random weights from growing over the blocks.
SMALL = ["MODEL.WEIGHTS", "", "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 64]
SMALL += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
SMALL += ["MODEL.RESNETS.WIDTH_PER_GROUP", 4]
# Apart, touching, one in another, nearly the same, around all; small, over the edge of the image.
CROWDED = [[8, 8, 48, 56], [48, 8, 88, 56], [16, 70, 150, 150], [60, 90, 100, 120]]
CROWDED += [[60, 90, 98, 121], [1, 2, 190, 158], [150, 10, 158, 19], [160, 40, 200, 90]]
# Of many sizes and shapes, so that some match is near to another: a constant that is a little
# different is seen.
MANY = [
    [13 * i % 110, 29 * i % 90, 13 * i % 110 + 6 + 23 * i % 57, 29 * i % 90 + 6 + 31 * i % 47]
    for i in range(40)
]
BATCHES: dict[str, list[list[list[int]]]] = {
    "crowded": [CROWDED, MANY],
    "one empty": [CROWDED, []],
    "empty": [[], []],
}
KINDS = {"loss": "losses", "gradient": "gradients", "buffer": "buffers", "detections": "detections"}


def record(device: str, names: Sequence[str], weights: Path | None, output: Path) -> None:
    """Write what this process' defcn_d2 computes to ``output``, one file a variant.

    Args:
        device: of the models.
        names: of the variants, none for all.
        weights: folder of another checkout's records, whose weights are taken.
        output: an existing folder.
    """
    import defcn_d2
    from defcn_d2 import ops

    package = Path(defcn_d2.__file__).resolve().parent
    if package.parent != Path(os.environ["PYTHONPATH"]).resolve():
        raise SystemExit(
            f"error: the package of {os.environ['PYTHONPATH']} is taken from {package}"
        )
    print(f"{package}: {ops.report()}", flush=True)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name in names or defcn_d2.config_names():
        file = name.replace("/", "+") + ".pth"
        state = (
            None if weights is None else torch.load(weights / file, weights_only=True)["weights"]
        )
        try:
            found = outputs_of(defcn_d2.get_config(name, [*SMALL, "MODEL.DEVICE", device]), state)
        except Exception as error:  # the other variants are compared all the same
            found = {"error": f"{type(error).__name__}: {error}", "weights": {}}
        torch.save(found, output / file)


def outputs_of(cfg, weights: dict[str, Tensor] | None) -> dict:
    """Outputs of a variant, with ``weights`` or, for None, with some of its own.

    Returns:
        "initial" and "weights", state dicts before and after the weights were changed, and the
        "values" that are compared, by names such as "loss crowded loss_cls".
    """
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    model = build_model(cfg)
    initial = _copy(model.state_dict())
    weights = varied_weights(initial) if weights is None else weights
    faults = differences(
        {x: torch.empty(y.shape, device="meta") for x, y in weights.items()},
        {x: torch.empty(y.shape, device="meta") for x, y in initial.items()},
    )
    if faults:
        return {"error": f"weights: {faults[0]}", "initial": initial, "weights": weights}
    num_classes = len(next(y for x, y in weights.items() if x.endswith("cls_score.bias")))
    values = {}
    for title, boxes in BATCHES.items():
        model.load_state_dict(weights)
        values.update(_step(model, batch(boxes, num_classes), title))
    return {"initial": initial, "weights": weights, "values": values}


def varied_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that differ from place to place: scores over the threshold, boxes of some size.

    Those of the beginning score 0.01 everywhere, and their boxes have no area.
    """
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator).to(value.device)
        if name.endswith("cls_score.weight"):
            value = 0.05 * noise
        elif name.endswith("cls_score.bias"):
            value = 0.5 * noise - 2.5
        elif name.endswith("bbox_pred.weight"):
            value = 0.05 * noise
        elif name.endswith("bbox_pred.bias"):  # deltas of anchors move by as many sizes: stay near
            value = 0.2 * noise + 2 * any(".scales." in x for x in state)
        elif value.is_floating_point() and value.dim() == 1 and "running" not in name:
            value = value + 0.1 * noise
        found[name] = value
    return found


def batch(boxes: list[list[list[int]]], num_classes: int) -> list[dict]:
    """Two images of different size, the first of which is shown enlarged, and their objects."""
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(1)
    inputs: list[dict] = []
    for (height, width), image_boxes in zip([(160, 192), (136, 168)], boxes):
        coarse = torch.randint(256, (3, height // 8, width // 8), generator=generator)
        image = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2).to(torch.uint8)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(image_boxes, dtype=torch.float32).view(-1, 4))
        instances.gt_classes = torch.arange(len(image_boxes)) % num_classes
        scale = 1 if inputs else 2
        size = {"height": scale * height, "width": scale * width}
        inputs.append({"image": image, "instances": instances, **size})
    return inputs


def _step(model: nn.Module, inputs: list[dict], title: str) -> dict[str, Tensor]:
    """Values of a training step of the batch, and of inference after it."""
    model.train()
    model.zero_grad()
    losses = model(inputs)
    sum(losses.values()).backward()
    found = {f"loss {title} {x}": y.detach() for x, y in losses.items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient {title} {name}"] = parameter.grad.clone()
    found.update({f"buffer {title} {x}": y.clone() for x, y in model.named_buffers()})
    model.eval()
    with torch.no_grad():
        for i, output in enumerate(model(inputs)):
            instances = output["instances"]
            found[f"detections {title} {i} boxes"] = instances.pred_boxes.tensor
            found[f"detections {title} {i} scores"] = instances.scores
            found[f"detections {title} {i} classes"] = instances.pred_classes
    return found


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def differences(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """A phrase for each tensor that is not the same to the last digit, the largest first.

    NaN is not the same as NaN: where both sides have it, nothing was compared.
    """
    found = [(math.inf, f"{x!r} is missing") for x in before if x not in after]
    found += [(math.inf, f"{x!r} is new") for x in after if x not in before]
    for name in [x for x in before if x in after]:
        old, new = before[name], after[name]
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            what = f"{name!r} is {_kind(new)}, was {_kind(old)}"
            found.append((math.inf, what))
        elif old.device.type != "meta" and not torch.equal(old, new):
            largest = (old.double() - new.double()).abs().max().item()
            what = f"{name!r} differs by up to {largest:.3g}"
            found.append((math.inf if math.isnan(largest) else largest, what))
    return [what for _, what in sorted(found, key=lambda x: -x[0])]


def _kind(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def comparison_of(before: dict, after: dict) -> tuple[bool, str]:
    """Equality of two records of a variant, and the sentence about it."""
    for side, found in (("before", before), ("after", after)):
        if "error" in found:
            return False, f"{side}: {found['error']}"
    values = before["values"]
    kinds = {kind: [x for x in values if x.startswith(f"{kind} ")] for kind in KINDS}
    kinds["detections"] = [x for x in kinds["detections"] if x.endswith("boxes")]
    numbers = {kind: len(names) for kind, names in kinds.items()}
    numbers["detections"] = sum(len(values[x]) for x in kinds["detections"])
    sentence = ", ".join(f"{number} {KINDS[kind]}" for kind, number in numbers.items())
    idle = [KINDS[kind] for kind in ("loss", "gradient", "detections") if not numbers[kind]]
    faults = [f"there are no {kind} to compare" for kind in idle]
    faults += differences(values, after["values"])
    if differences(before["initial"], after["initial"]):
        sentence += " (the weights of a new model by the same seed are others)"
    if not faults:
        return True, f"{sentence}: equal"
    return False, f"{sentence}: {len(faults)} differ, {'; '.join(faults[:3])}"


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A temporary work tree of the commit, with this one's compiled operator."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        if subprocess.run([*git, "add", "-q", "--detach", str(tree), commit]).returncode:
            raise SystemExit(f"error: git makes no work tree of {commit!r}; give a commit it has")
        try:
            for path in [x for pattern in BUILT for x in ROOT.glob(pattern)]:
                shutil.copy2(path, tree / path.relative_to(ROOT))
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def run(tree: Path, *arguments: str) -> None:
    """``record`` in a process whose defcn_d2 is that of the tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment.update(OMP_NUM_THREADS="1", PYTHONSAFEPATH="1")
    command = [sys.executable, "-W", "ignore", __file__, "--record", *arguments]
    subprocess.run(command, env=environment, check=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", nargs="?", help="what to compare with")
    parser.add_argument("--variants", nargs="+", default=[], help="all of the commit's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)

    # The process that a comparison starts for a side of it.
    if args.record:
        record(args.device, args.variants, args.weights, args.record)
        return 0

    # The commit first, then this work tree with the commit's weights.
    if not args.commit:
        parser.error("give the commit to compare with, such as HEAD~1")
    with tempfile.TemporaryDirectory() as folder, checkout(args.commit) as tree:
        before, after = Path(folder, "before"), Path(folder, "after")
        before.mkdir()
        after.mkdir()
        chosen = ["--device", args.device]
        chosen += ["--variants", *args.variants] if args.variants else []
        run(tree, str(before), *chosen)
        names = [x.stem.replace("+", "/") for x in sorted(before.glob("*.pth"))]
        chosen = ["--device", args.device, "--weights", str(before), "--variants", *names]
        run(ROOT, str(after), *chosen)

        # A sentence for each variant.
        results = []
        for path in sorted(before.glob("*.pth")):
            equal, sentence = comparison_of(
                *(torch.load(x, weights_only=True) for x in (path, after / path.name))
            )
            print(f"{path.stem.replace('+', '/')}: {sentence}")
            results.append(equal)
    if all(results):
        print(f"all {len(results)} variants are equal to those of {args.commit}")
        return 0
    print(f"{results.count(False)} of {len(results)} variants differ from those of {args.commit}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
