"""Peak selection with the boxes of Generalized Focal Loss (arXiv 2006.04388)."""

from .build import HEAD_REGISTRY
from .gfl import GFLHead
from .peak import PeakHead


@HEAD_REGISTRY.register()
class PeakGFLHead(PeakHead, GFLHead):
    """The head with distributions of the sides of boxes, and a selector as that of ``PeakHead``."""

    thins_out = "GFLHead"
