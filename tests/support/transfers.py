"""A count of the copies from a GPU to the host, on tensors without values."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Transfers(TorchDispatchMode):
    """Counts the copies from the device to the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sources, targets = (
            {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}
            for values in ((args, kwargs), result)
        )
        self.count += "cuda" in sources and targets == {"cpu"}
        return result
