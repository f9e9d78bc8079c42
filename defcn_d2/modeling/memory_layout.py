"""Memory layout of weights and feature maps, and convolutions that do not bear one."""

import logging

from torch import nn

logger = logging.getLogger(__name__)

# Of a block of oneDNN, the library of PyTorch's CPU convolutions, in the widest instruction set.
_BLOCK = 16


def allows_channels_last(model: nn.Module) -> bool:
    """Whether the model can be trained in channels_last; logs the layer that stands against it.

    A strided 1x1 convolution of fewer channels than oneDNN's block writes past its memory in the
    backward pass in that layout (oneDNN issue 6035).
    """
    for name, layer in model.named_modules():
        if (
            isinstance(layer, nn.Conv2d)
            and set(layer.kernel_size) == {1}
            and max(layer.stride) > 1
            and layer.in_channels < _BLOCK
        ):
            logger.warning(
                "MODEL.DEFCN.CHANNELS_LAST is left out: %s, a strided 1x1 convolution of %d "
                "channels, needs %d or more for it (oneDNN issue 6035)",
                *(name, layer.in_channels, _BLOCK),
            )
            return False
    return True
