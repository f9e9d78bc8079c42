"""Registries as they were, after a test that registers components of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from detectron2.modeling import BACKBONE_REGISTRY

from defcn_d2.modeling.criterion import CRITERION_REGISTRY
from defcn_d2.modeling.head import HEAD_REGISTRY
from defcn_d2.modeling.loss import CLASS_LOSS_REGISTRY
from defcn_d2.modeling.matcher import MATCHER_REGISTRY
from defcn_d2.modeling.neck import NECK_REGISTRY

#: The project's own.
REGISTRIES = {
    "HEAD": HEAD_REGISTRY,
    "NECK": NECK_REGISTRY,
    "MATCHER": MATCHER_REGISTRY,
    "CRITERION": CRITERION_REGISTRY,
    "CLASS_LOSS": CLASS_LOSS_REGISTRY,
}


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Within the block components may be registered; they are gone after it."""
    saved = [
        (values, dict(values))
        for registry in (*REGISTRIES.values(), BACKBONE_REGISTRY)
        for values in (registry._obj_map, getattr(registry, "_defaults", {}))
    ]
    try:
        yield
    finally:
        for values, before in saved:
            values.clear()
            values.update(before)
