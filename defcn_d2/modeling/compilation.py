"""torch.compile of parts of a model, which go on without it where it fails."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


class Compilation:
    """Modules that are compiled in place, until a compilation fails.

    In place: they keep their class and the names of their parameters, and with them checkpoints;
    copies and pickles of them are not compiled. Heights and widths are symbolic from the first
    call on (``dynamic=True``), as images of detectors hardly ever have one size: one program
    serves all, or a few, as sizes that are equal at first are taken to be equal always. Left to
    PyTorch (``dynamic=None``), the sizes of each level become symbolic when they are first seen to
    vary, for a head of five levels one after the other: four compilations within as many batches,
    where eight are the limit. Maps of a single cell are programs of their own in any case.

    Training and evaluation, and autocast or not, are programs of their own.
    """

    def __init__(self, modules: Sequence[nn.Module], backend: str = "inductor"):
        """
        Args:
            modules: to be called by this object from now on.
            backend: of ``torch.compile``.

        Raises:
            ValueError: there is no such backend.
        """
        backends = torch._dynamo.list_backends(exclude_tags=())
        if backend not in backends:
            raise ValueError(
                f"MODEL.DEFCN.COMPILE.BACKEND {backend!r} is unknown; one of: {', '.join(backends)}"
            )
        self._modules = list(modules)
        try:
            for module in self._modules:
                module.compile(backend=backend, dynamic=True)
        except RuntimeError as error:  # Python or the system are not supported
            self._give_up(error)

    def __call__(self, module: nn.Module, *inputs: Any) -> Any:
        """``module(*inputs)``, compiled.

        Where that fails, all modules run uncompiled from this call on, after one warning with the
        reason. A failure in compiling the backward pass comes after the call, and is raised there.
        """
        try:
            return module(*inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            if not is_compiled(module):
                raise
            self._give_up(error)
        return module(*inputs)

    def _give_up(self, error: Exception) -> None:
        for module in self._modules:
            module._compiled_call_impl = None
        logger.warning(
            "MODEL.DEFCN.COMPILE.ENABLED is True, but torch.compile failed; the model runs "
            "without it: %s",
            _reason(error),
        )


def is_compiled(module: nn.Module) -> bool:
    """Reports if calls of the module itself are compiled."""
    return module._compiled_call_impl is not None


def _reason(error: Exception) -> str:
    """The first line of the error behind ``error``, without PyTorch's advice."""
    inner = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0] if lines else ''}"
