"""Parts of a model that a training leaves as they are."""

from collections.abc import Sequence

from torch import nn

from ..config.rules import ConfigError
from ..utils.errors import did_you_mean


def freeze(
    model: nn.Module, prefixes: Sequence[str], exceptions: Sequence[str] = ()
) -> list[nn.Module]:
    """Take the gradients of parameters by the beginnings of their names.

    Args:
        prefixes: parameters with such names are frozen.
        exceptions: but not those with such names.

    Returns:
        the frozen modules, which have to stay in evaluation mode: norms would go on to change
        their statistics.

    Raises:
        ConfigError: one of the beginnings is that of no parameter, or nothing is left to learn.
    """

    def is_frozen(name: str) -> bool:
        return name.startswith(tuple(prefixes)) and not name.startswith(tuple(exceptions))

    names = [name for name, _ in model.named_parameters()]
    for key, beginnings in (("FREEZE", prefixes), ("FREEZE_EXCEPT", exceptions)):
        for beginning in beginnings:
            if not any(name.startswith(beginning) for name in names):
                known = sorted({".".join(name.split(".")[:2]) for name in names})
                raise ConfigError(
                    f"MODEL.DEFCN.{key} has {beginning!r}, with which no parameter begins; "
                    f"{did_you_mean(beginning, known)}"
                )
    for name, parameter in model.named_parameters():
        if is_frozen(name):
            parameter.requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"MODEL.DEFCN.FREEZE {list(prefixes)} leaves no parameter to learn; remove one of them"
        )
    return [module for name, module in model.named_modules() if is_frozen(name)]
