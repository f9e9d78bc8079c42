"""``overlap_with_better``, compiled and composed, against every cell compared with every other."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from literal_overlap import (
    LAYOUTS,
    OVERLAP_IMPLEMENTATIONS,
    grid_cases,
    laid_out,
    literal_overlap,
    random_grids,
)
from torch import Tensor, nn

from defcn_d2 import ops

Overlap = Callable[..., Tensor]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() and ops.is_compiled("cuda") else [])

both = pytest.mark.parametrize(
    "overlap_of", OVERLAP_IMPLEMENTATIONS.values(), ids=OVERLAP_IMPLEMENTATIONS
)
compiled_only = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator")
OPERATOR = torch.ops.defcn_d2.overlap_with_better


@settings(max_examples=80, deadline=None)
@given(case=grid_cases())
def test_equals_the_literal_reference(case: dict[str, Any]) -> None:
    expected = literal_overlap(**case)
    for overlap_of in OVERLAP_IMPLEMENTATIONS.values():
        overlap = overlap_of(**case)
        assert overlap.dtype == case["logits"].dtype and overlap.shape == case["logits"].shape
        assert overlap.is_contiguous() and torch.equal(overlap, expected)


@both
def test_the_iou_is_rounded_to_the_logits(overlap_of: Overlap) -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 1.0], [0.0, 0.0, 3.0, 1.0]])[None]  # IoU 3 / 5
    for box_dtype, dtype in itertools.product(DTYPES, DTYPES):
        logits = torch.tensor([[[1.0], [0.0]]], dtype=dtype)
        overlap = overlap_of(logits, boxes.to(box_dtype), [(1, 2)])
        single = torch.tensor(0.6, dtype=torch.float64 if box_dtype == torch.float64 else None)
        assert overlap.flatten().tolist() == [0, single.to(dtype).item()]


@both
def test_nan_and_infinity_overlap_nothing(overlap_of: Overlap) -> None:
    for value in (math.nan, math.inf, -math.inf):
        boxes = torch.tensor([0.0, 0.0, 5.0, 1.0]).repeat(1, 3, 1)
        boxes[0, 1, 2] = value
        logits = torch.tensor([[[3.0, 3.0], [2.0, 2.0], [1.0, math.nan]]])
        overlap = overlap_of(logits, boxes, [(1, 3)])
        assert not overlap.any()  # the middle overlaps none, the ends are no neighbours
        logits = logits[:, [0, 2]]
        overlap = overlap_of(logits, boxes[:, [0, 2]], [(1, 2)])
        assert overlap[0].tolist() == [[0, 0], [1, 0]]  # nothing is better than a NaN
        assert overlap_of(logits.flip(1), boxes[:, [0, 2]], [(1, 2)])[0, 1].tolist() == [0, 0]


@both
def test_of_equal_entries_the_first_is_better(overlap_of: Overlap) -> None:
    shapes = [(2, 2), (1, 1)]
    boxes = torch.tensor([0.0, 0.0, 8.0, 8.0]).expand(1, 5, 4)
    overlap = overlap_of(torch.zeros(1, 5, 2), boxes, shapes)
    assert overlap[0].tolist() == [[0, 0]] + [[1, 1]] * 4
    lowest = torch.full((1, 5, 2), -torch.inf)  # as the edges of the composition
    assert torch.equal(overlap_of(lowest, boxes, shapes), overlap)


@compiled_only
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_equals_composed_on_larger_maps(
    dtype: torch.dtype, layout: str, device: str
) -> None:
    for classes in (1, 21):
        case = random_grids((37, 150), 5, 2, classes, dtype=dtype, box_dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        noise = torch.rand(case["boxes"].shape, generator=generator, dtype=torch.float64)
        case["boxes"] = (case["boxes"] + noise).to(device)
        case["logits"] = laid_out(case["logits"].to(device), layout)
        for box_dtype in DTYPES:
            case["boxes"] = laid_out(case["boxes"].to(box_dtype), layout)
            overlap = ops.overlap_with_better(**case)
            assert torch.equal(overlap, ops.overlap_with_better_reference(**case))
            assert 0.1 < (overlap > 0.6).double().mean() < 0.9


@both
def test_half_precision_compares_as_float32(overlap_of: Overlap) -> None:
    case = random_grids()
    case["boxes"] += torch.rand(case["boxes"].shape, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        half = {**case, "logits": case["logits"].to(dtype), "boxes": case["boxes"].to(dtype)}
        wide = {**half, "logits": half["logits"].float(), "boxes": half["boxes"].float()}
        assert torch.equal(overlap_of(**half), overlap_of(**wide).to(dtype))


@both
def test_boxes_may_be_one_for_all_images(overlap_of: Overlap) -> None:
    case = random_grids()
    case["boxes"] = case["boxes"][:1].expand(2, -1, -1)
    assert torch.equal(overlap_of(**case), literal_overlap(**case))


@both
def test_there_is_no_gradient(overlap_of: Overlap) -> None:
    case = random_grids()
    case["logits"].requires_grad_()
    case["boxes"].requires_grad_()
    assert not overlap_of(**case).requires_grad


def test_transforms_of_torch_func_take_the_composition() -> None:
    case = random_grids(batch=3)
    mapped = torch.vmap(lambda z, b: ops.overlap_with_better(z, b, case["level_shapes"]))(
        case["logits"][:, None], case["boxes"][:, None]
    )
    assert torch.equal(mapped[:, 0], ops.overlap_with_better(**case))


def _changed(name: str, value: object) -> dict[str, Any]:
    case = random_grids((4, 6), 2)  # 24 and 6 cells
    case[name] = value(case[name]) if callable(value) else value
    return case


@both
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("tau", 1, ValueError, "tau must be 2 .* or 0 .*, got 1"),
        ("tau", 4, ValueError, "tau must be 2 .* or 0 .*, got 4"),
        ("logits", None, TypeError, "logits must be a tensor, got NoneType"),
        ("logits", lambda x: x[0], ValueError, r"logits must be \(N, R, K\), got shape \(30, 3\)"),
        (
            "logits",
            lambda x: x.long(),
            TypeError,
            "logits is torch.int64; overlap_with_better takes",
        ),
        ("boxes", lambda x: x.long(), TypeError, "boxes is torch.int64; overlap_with_better takes"),
        ("boxes", lambda x: x[:1], ValueError, r"N and R of logits, \(2, 30\), got .*\(1, 30, 4\)"),
        ("boxes", lambda x: x[..., :3], ValueError, r"boxes must be \(N, R, 4\).*\(2, 30, 3\)"),
        ("boxes", lambda x: x.to("meta"), ValueError, "device of logits, cpu, but are on meta"),
        ("level_shapes", [(4, 6), (3, 2)], ValueError, r"\[1\] must be half .*, 2 x 3, got 3 x 2"),
        ("level_shapes", [(4, 6)], ValueError, "level_shapes have 24 cells, but logits have 30"),
        ("level_shapes", [(-4, 6)], ValueError, r"level_shapes\[0\] cannot be -4 x 6"),
    ],
)
def test_wrong_arguments_are_named(
    overlap_of: Overlap, name: str, value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        overlap_of(**_changed(name, value))


def _flat(case: dict[str, Any]) -> tuple[Any, ...]:
    """As the operator takes them."""
    heights, widths = ([shape[i] for shape in case["level_shapes"]] for i in (0, 1))
    return case["logits"], case["boxes"], heights, widths, case["tau"]


@compiled_only
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tau", 1, "tau must be 0 or 2, got 1"),
        ("logits", lambda x: x[0], r"logits must be \(N, R, K\), got 2 dimensions"),
        ("logits", lambda x: x.long(), "logits and boxes must be float32, float64"),
        ("boxes", lambda x: x[:, :3], r"boxes must be \(N, R, 4\)"),
        ("level_shapes", [(4, 6), (3, 2)], "level 1 is 3 x 2, but must have half the rows"),
        ("level_shapes", [(4, 6)], "the levels have 24 cells, but logits 30"),
        ("level_shapes", [(-4, 6)], "level 0 cannot be -4 x 6"),
    ],
)
def test_the_library_checks_what_reaches_it(name: str, value: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        OPERATOR(*_flat(_changed(name, value)))


def test_operator_exists_whatever_was_built() -> None:
    case = random_grids()
    assert torch.equal(OPERATOR(*_flat(case)), literal_overlap(**case))


@compiled_only
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [0, 2])
def test_opcheck(layout: str, classes: int) -> None:
    case = random_grids((3, 4), 2, classes=classes, box_dtype=torch.float64)
    case["logits"] = laid_out(case["logits"], layout)
    torch.library.opcheck(OPERATOR.default, _flat(case))


class OverlapOfMaps(nn.Module):
    """Overlaps of maps whose first four channels are boxes."""

    def forward(self, *maps: Tensor) -> Tensor:
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        flat = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        return ops.overlap_with_better(flat[..., 4:], flat[..., :4].double(), shapes)


def _maps(shape: tuple[int, int], batch: int = 2) -> list[Tensor]:
    case = random_grids(shape, 3, batch)
    flat = torch.cat([case["boxes"], case["logits"]], dim=2)
    sizes = [height * width for height, width in case["level_shapes"]]
    return [
        x.mT.unflatten(2, size).contiguous()
        for x, size in zip(flat.split(sizes, dim=1), case["level_shapes"], strict=True)
    ]


def test_compile_without_a_graph_break_for_any_size() -> None:
    torch._dynamo.reset()
    module = OverlapOfMaps()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((12, 16), (20, 28)):
            maps = _maps(shape)
            assert torch.equal(compiled(*maps), module(*maps))


def test_export_with_dynamic_sizes_is_made_of_standard_operators() -> None:
    quarter = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    dims = tuple({2: s * quarter[0], 3: s * quarter[1]} for s in (4, 2, 1))
    with ops.standard_operators():
        program = torch.export.export(
            OverlapOfMaps(), tuple(_maps((12, 16))), dynamic_shapes={"maps": dims}
        )
    assert not any("defcn_d2" in str(node.target) for node in program.graph.nodes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for shape in ((12, 16), (20, 28)):
        maps = _maps(shape)
        assert torch.equal(loaded(*maps), OverlapOfMaps()(*maps))


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_model_is_made_of_standard_operators(dynamo: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    maps, file = _maps((3, 4))[:2], str(tmp_path / "model.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are taken as constants
        torch.onnx.export(
            OverlapOfMaps(), tuple(maps), file, dynamo=dynamo, opset_version=20, optimize=False
        )
    assert {node.domain for node in onnx.load(file).graph.node} <= {"", "ai.onnx"}
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (overlap,) = session.run(None, {n: x.numpy() for n, x in zip(names, maps, strict=True)})
    assert torch.equal(torch.from_numpy(overlap), OverlapOfMaps()(*maps))
