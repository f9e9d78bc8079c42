"""The 3D max filter under opcheck, torch.compile, torch.export, autocast and ONNX export."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from literal_max_filter import IMPLEMENTATIONS, PYRAMID, literal_max_filter, random_pyramid
from torch import Tensor, nn

from defcn_d2 import ops

Filter = Callable[..., list[Tensor]]
both = pytest.mark.parametrize("max_filter", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
compiled_only = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator")
OPERATORS = torch.ops.defcn_d2


class Filtered(nn.Module):
    """A convolution and the filter over five levels, as in the head."""

    def __init__(self, max_filter: Filter = ops.max_filter_3d) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.max_filter = max_filter

    def forward(self, *levels: Tensor) -> list[Tensor]:
        return self.max_filter([self.conv(level) for level in levels])


def _mixed_formats() -> list[Tensor]:
    levels = random_pyramid()
    levels[0] = levels[0].contiguous(memory_format=torch.channels_last)
    levels[2] = levels[2].mT
    return levels


SAMPLES: dict[str, Callable[[], tuple[list[Tensor], int, int]]] = {
    "contiguous": lambda: (random_pyramid(), 2, 3),
    "channels_last": lambda: (random_pyramid(memory_format=torch.channels_last), 4, 5),
    "mixed": lambda: (_mixed_formats(), 2, 3),
    "bfloat16": lambda: (random_pyramid(dtype=torch.bfloat16), 0, 3),
    "wide codes": lambda: (random_pyramid(), 2, 11),
    "empty": lambda: (random_pyramid([(4, 4), (0, 2), (1, 1)], 1, 1), 2, 3),
    "no channels": lambda: (random_pyramid(channels=0), 2, 3),
}


@compiled_only
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str, requires_grad: bool) -> None:
    levels, tau, kernel_size = SAMPLES[name]()
    _, codes = OPERATORS.max_filter_3d_with_codes(levels, tau, kernel_size)
    backward = (levels, codes, tau, kernel_size)
    torch.library.opcheck(OPERATORS.max_filter_3d_backward.default, backward)
    levels = [level.requires_grad_(requires_grad) for level in levels]
    for operator in (OPERATORS.max_filter_3d, OPERATORS.max_filter_3d_with_codes):
        torch.library.opcheck(operator.default, (levels, tau, kernel_size))


@both
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_a_graph_break(max_filter: Filter, backend: str) -> None:
    torch._dynamo.reset()
    module = Filtered(max_filter)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    levels = random_pyramid(PYRAMID[:3])
    for make in (lambda x: x, lambda x: x.contiguous(memory_format=torch.channels_last)):
        inputs = [make(level) for level in levels]
        expected = _parameter_gradients(module, module(*inputs))
        computed = _parameter_gradients(module, compiled(*inputs))
        for pair in zip(computed, expected, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for pair in zip(compiled(*inputs), module(*inputs), strict=True):
                torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)


@compiled_only
def test_compile_with_inductor() -> None:
    # The operator alone: what inductor makes of its surroundings is slow to build and not ours.
    torch._dynamo.reset()
    compiled = torch.compile(ops.max_filter_3d, fullgraph=True, backend="inductor")
    levels = [level.requires_grad_() for level in random_pyramid()]
    grads = [torch.randn_like(level) for level in levels]
    outputs = compiled(levels)
    expected = ops.max_filter_3d(levels)
    assert all(map(torch.equal, outputs, expected))
    computed = torch.autograd.grad(outputs, levels, grads)
    assert all(map(torch.equal, computed, torch.autograd.grad(expected, levels, grads)))


def _parameter_gradients(module: nn.Module, outputs: list[Tensor]) -> list[Tensor]:
    total = sum(output.square().sum() for output in outputs)
    assert isinstance(total, Tensor)
    return [total.detach(), *torch.autograd.grad(total, list(module.parameters()))]


@both
def test_export_with_dynamic_sizes(max_filter: Filter) -> None:
    levels = random_pyramid([(12, 16), (6, 8)])
    height, width = torch.export.Dim("height", min=3), torch.export.Dim("width", min=3)
    shapes = ({0: None, 2: 2 * height, 3: 2 * width}, {0: None, 2: height, 3: width})
    with torch.no_grad():
        program = torch.export.export(
            Filtered(max_filter).eval(), tuple(levels), dynamic_shapes={"levels": shapes}
        )
    targets = {str(node.target) for node in program.graph.nodes}
    compiled = max_filter is ops.max_filter_3d and ops.is_compiled("cpu")
    assert ("defcn_d2.max_filter_3d.default" in targets) == compiled
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    larger = random_pyramid([(20, 28), (10, 14)])
    module = Filtered(max_filter)
    module.load_state_dict(program.state_dict)
    for pair in zip(loaded(*larger), module(*larger), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_it_is_given(max_filter: Filter, dtype: torch.dtype) -> None:
    module = Filtered(max_filter)
    with torch.autocast("cpu", dtype=dtype):
        outputs = module(*random_pyramid())
    assert {output.dtype for output in outputs} == {dtype}
    sum(output.float().sum() for output in outputs).backward()
    gradient = module.conv.weight.grad
    assert gradient is not None and gradient.dtype == torch.float32 and gradient.isfinite().all()


@compiled_only
def test_meta_tensors_have_the_shapes_and_formats_of_the_outputs() -> None:
    levels = random_pyramid(memory_format=torch.channels_last)
    outputs = ops.max_filter_3d(levels)
    for output, level in zip(outputs, levels, strict=True):
        (meta, *_) = OPERATORS.max_filter_3d([level.to("meta")], 2, 3)
        assert meta.shape == output.shape and meta.stride() == output.stride()
    with pytest.raises(ValueError, match="tau must be even"):
        OPERATORS.max_filter_3d([levels[0].to("meta")], 1, 3)


def test_operator_exists_whatever_was_built() -> None:
    levels = random_pyramid()
    outputs = OPERATORS.max_filter_3d(levels, 2, 3)
    for pair in zip(outputs, literal_max_filter(levels), strict=True):
        torch.testing.assert_close(*pair, rtol=0, atol=1e-5)


def test_onnx_export_takes_the_composition(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporters set this flag while they trace; no package of ONNX is needed to look."""
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(Filtered().eval(), tuple(random_pyramid()), strict=False)
    operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
    names = {str(operator) for operator in operators}
    assert not any("defcn_d2" in name for name in names)
    assert {"aten.maximum.default", "aten.max_pool2d.default"} <= names


@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_model_is_made_of_resize_max_and_maxpool(dynamo: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    module, file = Filtered().eval(), str(tmp_path / "model.onnx")
    levels = random_pyramid(PYRAMID[:3])
    torch.onnx.export(module, tuple(levels), file, dynamo=dynamo, opset_version=20)
    kinds = {node.op_type for node in onnx.load(file).graph.node}
    assert {"Resize", "Max", "MaxPool"} <= kinds
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs = session.run(None, {n: x.numpy() for n, x in zip(names, levels, strict=True)})
    for output, expected in zip(outputs, module(*levels), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected.detach(), rtol=0, atol=1e-5)
