"""Weights that timm downloads, by the address "timm://NAME"."""

import os
from typing import Any

import torch
from iopath.common.file_io import PathHandler, get_cache_dir

from ..utils.errors import first_line
from ..utils.files import replacing

_PREFIX = "timm://"


class TimmPathHandler(PathHandler):
    """``MODEL.WEIGHTS`` "timm://NAME": what timm downloads for the network of this name.

    It is kept beside Detectron2's downloads (``FVCORE_CACHE``), and timm is asked once.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **_: Any) -> str:
        name = path.removeprefix(_PREFIX)
        folder = os.path.join(get_cache_dir(), "timm")
        file = os.path.join(folder, f"{name.replace('/', '--')}.pth")
        if force or not os.path.isfile(file):
            weights = _download(name)
            os.makedirs(folder, exist_ok=True)
            with replacing(file) as stream:
                torch.save({"model": weights}, stream)
        return file


def _download(name: str) -> dict[str, torch.Tensor]:
    try:
        import timm

        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of any kind: no timm, no such network, no weights, no connection
        raise OSError(f"timm gives no weights of {name!r} ({first_line(error)})") from error
