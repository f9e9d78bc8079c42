"""Models that oneDNN cannot train in channels_last are trained in the usual layout."""

import logging

import pytest
import torch
from detectron2.modeling import build_model
from helpers import make_cfg, random_inputs

from defcn_d2.modeling.memory_layout import allows_channels_last


def conv(channels: int, kernel: int | tuple[int, int] = 1, stride: int = 2) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(channels, 16, kernel, stride=stride)


@pytest.mark.parametrize(
    "layer", [conv(16), conv(8, stride=1), conv(8, 3), conv(8, (1, 3)), torch.nn.ReLU()], ids=str
)
def test_usual_layers_bear_it(layer: torch.nn.Module) -> None:
    assert allows_channels_last(torch.nn.Sequential(layer, conv(64)))


@pytest.mark.parametrize("channels", [1, 8, 15])
def test_the_layer_that_does_not_is_named(channels: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not allows_channels_last(torch.nn.Sequential(conv(64), conv(channels)))
    (record,) = caplog.records
    assert f"left out: 1, a strided 1x1 convolution of {channels} channels" in record.getMessage()


def test_a_model_that_is_too_narrow_is_trained_in_the_usual_layout() -> None:
    """In a process whose memory is overwritten, this would end it sooner or later."""
    widths = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 8, "MODEL.DEFCN.CHANNELS_LAST": True}
    cfg = make_cfg("shapes/POTO.yaml", *(word for pair in widths.items() for word in pair))
    model = build_model(cfg)
    assert not model.channels_last
    assert all(p.is_contiguous() for p in model.parameters())
    for _ in range(3):
        losses = model(random_inputs([(64, 96)] * 2, [3, 2], 7))
        sum(losses.values()).backward()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    assert build_model(cfg).channels_last
