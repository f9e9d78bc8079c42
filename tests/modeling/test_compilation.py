"""torch.compile: the same results and names, few programs for many sizes, and going on without."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from detectron2.modeling import build_model
from helpers import random_inputs, tiny_cfg
from torch import nn

from defcn_d2.modeling.compilation import Compilation, is_compiled

NUM_CLASSES = 3
GRAPHS: list[torch.fx.GraphModule] = []


def counting(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
    GRAPHS.append(graph)
    return graph.forward


def failing(graph: torch.fx.GraphModule, example_inputs: list) -> Callable:
    GRAPHS.append(graph)
    raise RuntimeError("there is no compiler here\nand this is how to get one")


@pytest.fixture(autouse=True, scope="module")
def _backends() -> None:
    torch._dynamo.register_backend(counting, name="defcn_counting")
    torch._dynamo.register_backend(failing, name="defcn_failing")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    GRAPHS.clear()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make_model(*opts: object) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES, *opts)).train()
    model.backbone.eval()
    return model


def compiled_model(backend: str, *opts: object) -> nn.Module:
    compiled = ("MODEL.DEFCN.COMPILE.ENABLED", True, "MODEL.DEFCN.COMPILE.BACKEND", backend)
    return make_model(*compiled, *opts)


def assert_same_losses(model: nn.Module, twin: nn.Module, size: tuple[int, int]) -> None:
    inputs = random_inputs([size] * 2, [3, 2], NUM_CLASSES)
    results = []
    for network in (model, twin):
        network.zero_grad(set_to_none=True)
        losses = network(inputs)
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in network.parameters() if p.requires_grad]))
    (losses, gradients), (expected, expected_gradients) = results
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-5, atol=0)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


def test_losses_gradients_and_names_are_the_same() -> None:
    """Also with a head that is computed again in the backward pass."""
    twin = make_model()
    model = compiled_model("aot_eager", "MODEL.DEFCN.HEAD_CHECKPOINTING", True)
    assert list(model.state_dict()) == list(twin.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in twin.named_parameters()]
    model.load_state_dict(twin.state_dict())
    assert_same_losses(model, twin, (64, 96))
    assert is_compiled(model.backbone) and is_compiled(model.head)


def test_where_compiling_fails_the_model_runs_without(caplog: pytest.LogCaptureFixture) -> None:
    twin, model = make_model(), compiled_model("defcn_failing")
    assert is_compiled(model.backbone) and is_compiled(model.head)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same_losses(model, twin, (64, 64))
    assert not is_compiled(model.backbone) and not is_compiled(model.head)
    # by its file: Detectron2's log handlers, if a training came before, shorten the name
    (record,) = [x for x in caplog.records if x.module == "compilation"]
    assert record.getMessage().endswith("runs without it: RuntimeError: there is no compiler here")
    assert len(GRAPHS) == 1  # not tried again


def test_python_without_a_compiler(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: object, **kwargs: object) -> None:
        raise RuntimeError("torch.compile is not supported on Python 4")

    monkeypatch.setattr(torch, "compile", unsupported)
    module = nn.Linear(2, 2)
    with caplog.at_level(logging.WARNING):
        compilation = Compilation([module])
    assert "not supported on Python 4" in caplog.text
    x = torch.ones(1, 2)
    assert torch.equal(compilation(module, x), module(x))


def test_errors_of_the_module_are_its_own() -> None:
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] > 1:
                raise ValueError("one at a time")
            return x + 1

    module = Wrong()
    compilation = Compilation([module], "eager")
    assert compilation(module, torch.zeros(1)) == 1
    with pytest.raises(ValueError, match="one at a time"):
        compilation(module, torch.zeros(2))


def test_errors_of_a_compiler_within_a_module_that_is_not_compiled_are_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class CompilesByItself(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch._dynamo.exc.TorchDynamoException("its own")

    compiled, module = nn.Linear(2, 2), CompilesByItself()
    compilation = Compilation([compiled], "defcn_counting")
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="its own"):
        compilation(module, torch.ones(1))
    assert is_compiled(compiled) and not caplog.records


def test_copies_are_independent() -> None:
    module = nn.Linear(2, 2)
    compilation = Compilation([module], "defcn_counting")
    x = torch.ones(1, 2)
    compilation(module, x)
    twin, twins = copy.deepcopy((module, compilation))
    nn.init.zeros_(twin.weight)
    nn.init.zeros_(twin.bias)
    assert (twins(twin, x) == 0).all()
    assert is_compiled(module) and not is_compiled(twin)


def test_unknown_backend_is_told() -> None:
    with pytest.raises(ValueError, match="BACKEND 'inductr' is unknown; one of: .*inductor"):
        compiled_model("inductr")
