"""Any network of timm that gives feature maps, with the FPN of this project."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from torch import Tensor, nn

from ...config.rules import ConfigError, first_problem
from ...utils.detectron2_compat import BatchNorm
from ...utils.errors import did_you_mean, first_line
from .build import fpn_over

_SIDE = 64  # pixels of the image that tells what depends on what


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The network ``MODEL.TIMM.NAME`` of the package timm, and an FPN of the levels P3 to P7.

    Its map of stride 2^k is called "res<k>", and ``MODEL.FPN.IN_FEATURES`` chooses among them. The
    first ``MODEL.BACKBONE.FREEZE_AT`` of them are frozen with all that they are computed from.
    ``MODEL.WEIGHTS`` may be a file of timm's weights, or "timm://NAME" for its own download.

    Raises:
        ConfigError: there is no timm, or no such network in it; or images are prepared in another
            way than those that it was trained with.
    """
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(
            "MODEL.BACKBONE.NAME is 'build_timm_fpn_backbone', which needs the package timm: "
            "pip install timm"
        )
    problem = first_problem(_problems(cfg, input_shape.channels))
    if problem is not None:
        raise ConfigError(problem)
    try:
        bottom_up = TimmBackbone(
            cfg.MODEL.TIMM.NAME,
            in_channels=input_shape.channels,
            features=cfg.MODEL.FPN.IN_FEATURES,
            norm=cfg.MODEL.TIMM.NORM,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    except (RuntimeError, AssertionError, TypeError) as error:  # of a network without such maps
        raise ConfigError(
            f"MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME!r} gives no feature maps of images of any size "
            f"({first_line(error)}); choose a convolutional network"
        ) from error
    return fpn_over(bottom_up, cfg)


def _problems(cfg: CfgNode, channels: int) -> Iterator[str]:
    import timm

    name = cfg.MODEL.TIMM.NAME
    if not timm.is_model(name):
        yield f"MODEL.TIMM.NAME {name!r} is unknown; {did_you_mean(name, timm.list_models())}"
    try:
        trained = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        yield f"MODEL.TIMM.NAME {name!r} is unknown; {did_you_mean(name, tags)}"
    if trained is None or channels != len(trained.mean):
        return
    if cfg.INPUT.FORMAT != "RGB":
        yield (
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, but MODEL.TIMM.NAME {name!r} takes 'RGB'; set "
            "it to that"
        )
    for key, share in (("PIXEL_MEAN", trained.mean), ("PIXEL_STD", trained.std)):
        wanted = [round(255 * x, 3) for x in share]  # timm's images are in [0, 1]
        if any(abs(x - y) > 0.05 for x, y in zip(cfg.MODEL[key], wanted)):
            yield (
                f"MODEL.{key} is {list(cfg.MODEL[key])}, but MODEL.TIMM.NAME {name!r} takes "
                f"{wanted} (255 times {list(share)}); set it to that"
            )


class TimmBackbone(Backbone):
    """A network of timm as Detectron2 has them: images to feature maps by name."""

    def __init__(
        self, name: str, *, in_channels: int, features: list[str], norm: str, freeze_at: int
    ):
        """
        Args:
            name: of the network in timm, with or without the tag of its weights.
            in_channels: of the images.
            features: names of the maps: "res3" has stride 8.
            norm: "BN"; "FrozenBN": with its statistics and factors as they are; "SyncBN". Norms
                of another kind than of batches stay as they are.
            freeze_at: maps of up to this power of 2 are frozen with what they come from; 0: none.

        Raises:
            ConfigError: the network has no map of some of these names.
        """
        from timm import create_model, layers

        super().__init__()
        self.name = name
        with torch.device("meta"):
            info = create_model(name, features_only=True).feature_info
        #: The place of each map among those of the network: the last one of its stride.
        places = {f"res{x['reduction'].bit_length() - 1}": i for i, x in enumerate(info.info)}
        if not features or not set(features) <= set(places):
            raise ConfigError(
                f"MODEL.FPN.IN_FEATURES is {list(features)}, but must be of the maps of "
                f"MODEL.TIMM.NAME {name!r}: {', '.join(places)}"
            )
        self._places = {feature: places[feature] for feature in places if feature in features}
        count = max(self._places.values()) + 1
        self.body = create_model(
            name, features_only=True, in_chans=in_channels, out_indices=tuple(range(count))
        )
        strides = info.reduction(list(range(count)))
        self._out_features = list(self._places)
        self._out_feature_strides = {x: strides[i] for x, i in self._places.items()}
        self._out_feature_channels = {x: info.channels(i) for x, i in self._places.items()}
        self.body = _padded_alike(self.body)
        if norm == "SyncBN":
            self.body = layers.convert_sync_batchnorm(self.body)
        elif norm == "FrozenBN":  # Detectron2's conversion would drop activations
            self.body = layers.freeze_batch_norm_2d(self.body)
        self._freeze(strides, freeze_at, in_channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) to a map (N, C_k, H / 2^k, W / 2^k) for each "res<k>"."""
        maps = self.body(images)
        return {name: maps[place] for name, place in self._places.items()}

    def _freeze(self, strides: list[int], freeze_at: int, in_channels: int) -> None:
        """Freeze what maps of fine stride depend on, and what no map does."""
        from timm.layers import freeze_batch_norm_2d

        parameters = {n: p for n, p in self.body.named_parameters() if p.requires_grad}
        device = next(self.body.parameters()).device
        self.body.eval()  # statistics stay as they are
        with torch.enable_grad():
            maps = self.body(torch.zeros(1, in_channels, _SIDE, _SIDE, device=device))
        finest: dict[str, int] = {}  # stride of the first map that depends on a parameter
        for stride, x in zip(strides, maps):
            if x.shape[-1] * stride != _SIDE:
                raise RuntimeError(f"a map {tuple(x.shape)} for stride {stride}")
            gradients = torch.autograd.grad(
                x.sum(), list(parameters.values()), retain_graph=True, allow_unused=True
            )
            for name, gradient in zip(parameters, gradients):
                if gradient is not None:
                    finest.setdefault(name, stride)
        self.body.train()
        frozen = 2**freeze_at if freeze_at else 0
        for name, parameter in parameters.items():
            parameter.requires_grad_(finest.get(name, 0) > frozen)
        for name, module in list(self.body.named_modules()):
            if isinstance(module, BatchNorm) and not any(
                p.requires_grad for p in module.parameters()
            ):
                parent, _, child = name.rpartition(".")
                setattr(self.body.get_submodule(parent), child, freeze_batch_norm_2d(module))

    def own_names(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Weights of the whole network, by timm's names, under those of this module.

        Raises:
            ValueError: one is missing or of another shape.
        """
        own = {}
        for name, value in self.state_dict().items():
            found = [other for other in _whole_names(name) if other in weights]
            if found and tuple(weights[found[0]].shape) == tuple(value.shape):
                own[name] = weights[found[0]]
            elif not name.endswith("num_batches_tracked"):
                shape = f"{found[0]} has shape {tuple(weights[found[0]].shape)}" if found else ""
                raise ValueError(
                    f"not weights of MODEL.TIMM.NAME {self.name!r}: "
                    f"{shape or next(_whole_names(name)) + ' is missing'}"
                )
        return own


class _SameConv(nn.Conv2d):
    """TensorFlow's convolution of maps whose sides are multiples of its stride.

    There the padding is the same for all, while timm's own computes it from the size, of which an
    export with free sizes makes arithmetic.
    """

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for size, stride, step in zip(self.kernel_size, self.stride, self.dilation):
            total = max(step * (size - 1) + 1 - stride, 0)
            pads = [total // 2, total - total // 2, *pads]  # of the last side first
        return self._conv_forward(F.pad(input, pads), self.weight, self.bias)


def _padded_alike(body: nn.Module) -> nn.Module:
    """The network with ``_SameConv``: images are padded to multiples of the coarsest stride."""
    from timm.layers import Conv2dSame

    for name, conv in list(body.named_modules()):
        if isinstance(conv, Conv2dSame):
            same = _SameConv(
                *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0),
                *(conv.dilation, conv.groups, conv.bias is not None),
            )
            same.weight, same.bias = conv.weight, conv.bias
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, same)
    return body


def _whole_names(name: str) -> Iterator[str]:
    """Names that a weight may have in the whole network: timm joins the first two by "_"."""
    name = name.removeprefix("body.")
    yield name
    yield name.removeprefix("model.")
    first, _, rest = name.partition(".")
    for i, character in enumerate(first):
        if character == "_":
            yield f"{first[:i]}.{first[i + 1 :]}.{rest}"
