"""Devices without a kernel of this package (MPS, XPU, ...) and transforms: compositions take over.

The stand-in for such a device are tensors that say they are on ``meta``, of which every PyTorch
knows, and have their values on the CPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import make_cfg, random_inputs
from literal_max_filter import random_pyramid
from literal_overlap import random_grids
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from defcn_d2 import ops
from defcn_d2.engine import Trainer


class Elsewhere(torch.Tensor):
    """A tensor on ``meta`` with ``values`` on the CPU; to be used within ``Device``."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), dtype=values.dtype, device="meta"
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Device().__torch_dispatch__(func, types, args, kwargs)


class Device(TorchDispatchMode):
    """Runs PyTorch's own operators on the values, and no others; no tensor comes from the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.namespace in ("aten", "prim"), f"{func} has no kernel for this device"
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        assert all(isinstance(x, Elsewhere) or x.dim() == 0 for x in given), func
        results = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs or {}))
        return tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, results)


def _on_cpu(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.values if isinstance(x, Elsewhere) else x


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_max_filter_and_its_gradient_are_composed(memory_format: torch.memory_format) -> None:
    levels = random_pyramid(memory_format=memory_format)
    grads = [torch.randn_like(level) for level in levels]
    expected = ops.max_filter_3d_reference(levels)
    leaves = [level.clone().requires_grad_() for level in levels]
    expected_grads = torch.autograd.grad(ops.max_filter_3d_reference(leaves), leaves, grads)

    with Device(), pytest.warns(UserWarning, match="no kernel for 'meta' devices"):
        ops._library._warned.discard("meta")
        there = [Elsewhere(level) for level in levels]
        outputs: list[Any] = ops.max_filter_3d(there)
        leaves = [Elsewhere(level).requires_grad_() for level in levels]
        given = [Elsewhere(grad) for grad in grads]
        there_grads: Any = torch.autograd.grad(ops.max_filter_3d(leaves), leaves, given)
    for found, wanted in zip((*outputs, *there_grads), (*expected, *expected_grads), strict=True):
        assert found.device.type == "meta"
        torch.testing.assert_close(found.values, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overlap_with_better_is_composed(dtype: torch.dtype) -> None:
    case = random_grids(dtype=dtype)
    expected = ops.overlap_with_better(**case)
    with Device(), pytest.warns(UserWarning, match="no kernel for 'meta' devices"):
        ops._library._warned.discard("meta")
        there = {name: Elsewhere(case[name]) for name in ("logits", "boxes")}
        found: Any = ops.overlap_with_better(**{**case, **there})
    assert found.device.type == "meta" and torch.equal(found.values, expected)


class Dtypes(TorchDispatchMode):
    """Collects the types of all results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(results) if isinstance(x, Tensor)}
        return results


@pytest.mark.parametrize(
    ("config", "nms_type", "has_float64"),
    [("POTO-3DMF", "none", False), ("Peak", "none", False), ("FCOS", "class_wise", True)],
)
def test_inference_without_nms_needs_no_float64(
    config: str, nms_type: str, has_float64: bool
) -> None:
    """MPS has none. What needs it is named in docs/troubleshooting.md."""
    opts = ("MODEL.DEFCN.NMS_TYPE", nms_type, "MODEL.DEFCN.SCORE_THRESH_TEST", 0.0)
    model = Trainer.build_model(make_cfg(f"shapes/{config}.yaml", *opts)).eval()
    with Dtypes() as dtypes, torch.no_grad():
        assert len(model(random_inputs([(64, 96)], [0], num_classes=7))[0]["instances"])
    assert torch.float32 in dtypes.seen and (torch.float64 in dtypes.seen) == has_float64


def test_overlap_with_better_under_transforms_of_torch_func() -> None:
    cases = [random_grids(seed=seed) for seed in range(3)]
    logits, boxes = (torch.stack([case[name] for case in cases]) for name in ("logits", "boxes"))

    def overlap(logits: Tensor, boxes: Tensor) -> Tensor:
        return ops.overlap_with_better(logits, boxes, cases[0]["level_shapes"])

    for in_dims in ((0, 0), (0, None), (None, 0)):
        pairs = [
            (logits[0 if in_dims[0] is None else i], boxes[0 if in_dims[1] is None else i])
            for i in range(3)
        ]
        given = (logits if in_dims[0] == 0 else logits[0], boxes if in_dims[1] == 0 else boxes[0])
        found = torch.vmap(overlap, in_dims)(*given)
        assert torch.equal(found, torch.stack([overlap(*pair) for pair in pairs]))

    def weighted(logits: Tensor, boxes: Tensor) -> Tensor:
        return (logits * overlap(logits, boxes)).sum()

    gradients = torch.vmap(torch.func.grad(weighted))(logits, boxes)  # the overlap is a constant
    assert torch.equal(gradients, torch.vmap(overlap)(logits, boxes)) and gradients.any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_compiled_vmap() -> None:
    """``torch.compile`` sees no transform: the 3D max filter says that it has no rule for it."""
    case = random_grids()
    found = torch.compile(
        torch.vmap(lambda *x: ops.overlap_with_better(*x, case["level_shapes"])), backend="eager"
    )(case["logits"][:, None], case["boxes"][:, None])
    assert torch.equal(found[:, 0], ops.overlap_with_better(**case))
    levels = [torch.rand(2, 1, 2, 4, 4), torch.rand(2, 1, 2, 2, 2)]
    mapped = torch.compile(torch.vmap(lambda *x: ops.max_filter_3d(x)), backend="eager")
    if ops.is_compiled("cpu"):
        with pytest.raises(Exception, match="Batching rule not implemented"):
            mapped(*levels)
