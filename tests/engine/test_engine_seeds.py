"""Random numbers by seed and purpose, and batches that follow from them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st

from defcn_d2 import add_defcn_config
from defcn_d2.engine import seeds
from defcn_d2.engine.seeds import seed_generators, seed_of_run, seeded_generators


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def drawn(*numbers: int) -> tuple[float, float, float]:
    seed_generators(*numbers)
    return draw()


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_same_numbers_same_draws_and_others_others(numbers):
    first = drawn(*numbers)
    assert drawn(*numbers) == first
    other = drawn(*numbers[:-1], numbers[-1] + 1)
    assert all(a != b for a, b in zip(first, other))


def test_a_block_leaves_the_generators_as_they_were():
    seed_generators(1)
    expected = [draw(), draw()]
    seed_generators(1)
    found = [draw()]
    with seeded_generators(7, 8):
        inside = draw()
    found.append(draw())
    assert found == expected
    with seeded_generators(7, 8):
        assert draw() == inside
    with pytest.raises(KeyError), seeded_generators(7):
        raise KeyError
    seed_generators(3)
    third = draw()
    seed_generators(3)
    with pytest.raises(KeyError), seeded_generators(7):
        raise KeyError
    assert draw() == third


def test_seed_of_a_run(monkeypatch):
    cfg = get_cfg()
    add_defcn_config(cfg)
    cfg.SEED = 5
    assert seed_of_run(cfg) == 5
    cfg.SEED = -1
    monkeypatch.setattr(seeds.comm, "shared_random_seed", lambda: 77)
    assert seed_of_run(cfg) == 77


def test_deterministic_operators(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        seeds.use_deterministic_operators()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(before)
