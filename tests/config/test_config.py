"""Configuration keys: defaults of the method, a comment and a use for each, beside Detectron2's."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from helpers import ROOT, make_cfg

import defcn_d2
from defcn_d2 import add_defcn_config
from defcn_d2.config.defaults import REGISTRIES
from defcn_d2.config.load import load_config

PACKAGE = Path(defcn_d2.__file__).parent


def our_cfg() -> CfgNode:
    cfg = get_cfg()
    add_defcn_config(cfg)
    return cfg


def leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def our_keys() -> list[str]:
    return sorted(set(leaves(our_cfg())) - set(leaves(get_cfg())))


def is_of_component(key: str) -> bool:
    """Whether a key is an argument of a component, as MODEL.DEFCN.MATCHER.POTO.ALPHA is."""
    place, name = ["", "", *key.split(".")][-3:-1]
    return place in REGISTRIES and name in REGISTRIES[place]


def test_without_a_file_there_are_the_defaults() -> None:
    cfg = load_config("")
    assert cfg == our_cfg() and cfg.is_frozen()


def test_defaults_are_the_method_s() -> None:
    node = our_cfg().MODEL.DEFCN
    assert (node.NUM_CLASSES, node.NUM_CONVS, node.NORM) == (80, 4, "GN")
    assert node.IN_FEATURES == ["p3", "p4", "p5", "p6", "p7"]
    assert (node.PRIORS, node.NORM_REG_TARGETS, node.PRIOR_PROB) == ("points", True, 0.01)
    assert (node.MAX_FILTERING.TAU, node.MAX_FILTERING.KERNEL_SIZE) == (2, 3)
    assert node.LOSS.NAME == "FocalLoss"
    assert node.LOSS.FocalLoss == {"ALPHA": 0.25, "GAMMA": 2.0}
    criterion = node.CRITERION[node.CRITERION.NAME]
    assert (criterion.CLS_WEIGHT, criterion.REG_WEIGHT, criterion.L1_WEIGHT) == (1.0, 2.0, 0.0)
    assert (criterion.NORMALIZER, criterion.PREDICTIONS) == ("foreground", "main")
    auxiliary = node.AUX.CRITERION[node.AUX.CRITERION.NAME]
    assert (auxiliary.CLS_WEIGHT, auxiliary.REG_WEIGHT, auxiliary.FUSED) == (1.0, 0.0, False)
    assert (node.SCORE_THRESH_TEST, node.TOPK_CANDIDATES_TEST) == (0.05, 1000)
    assert (node.NMS_TYPE, node.NMS_THRESH_TEST) == ("none", 0.6)
    assert (node.MATCHER.NAME, node.AUX.MATCHER.NAME) == ("POTO", "POTOAux")
    assert (node.HEAD.NAME, node.AUX.HEAD.NAME, node.NECK.NAME) == ("DeFCNHead", "", "")
    assert node.AUX.ENABLED is False


def test_keys_of_detectron2_stay_as_they_are() -> None:
    before, after = get_cfg(), our_cfg()
    for key in leaves(before):
        a, b = before, after
        for part in key.split("."):
            a, b = a[part], b[part]
        assert a == b, key


def test_every_key_has_a_comment() -> None:
    """A line, or a group of lines, that assigns keys follows a comment."""
    lines = (PACKAGE / "config" / "defaults.py").read_text().splitlines()
    assigned = re.compile(r"    (?:node|cfg)\.[A-Z0-9_.]+ = (.*)")
    count = 0
    for i, line in enumerate(lines):
        match = assigned.match(line)
        if match and match[1] != "CN()":
            count += 1
            above = i - 1
            while assigned.match(lines[above]):
                above -= 1
            assert lines[above].lstrip().startswith("#"), line
    assert count == len([key for key in our_keys() if not is_of_component(key)])


@pytest.mark.parametrize(
    "key", sorted({key.split(".")[-1] for key in our_keys() if not is_of_component(key)})
)
def test_every_key_is_read(key: str) -> None:
    """By its name as an attribute, or as a string where many are read alike."""
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "defaults.py"]
    name = "MAX_FILTERING" if f"MODEL.DEFCN.MAX_FILTERING.{key}" in our_keys() else key
    assert any(re.search(rf"\.{name}\b|\"{name}\"", path.read_text()) for path in files)


def test_unknown_key() -> None:
    with pytest.raises((KeyError, AssertionError), match="MODEL.DEFCN.ALPHA|ALPHA"):
        our_cfg().merge_from_list(["MODEL.DEFCN.ALPHA", 0.5])


def test_config_survives_being_written(tmp_path: Path) -> None:
    cfg = make_cfg("POTO-3DMF-Aux.yaml", "MODEL.DEFCN.MATCHER.POTO.ALPHA", 0.7)
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    again = our_cfg()
    again.merge_from_file(str(path))
    assert again.MODEL.DEFCN == cfg.MODEL.DEFCN
    assert again.SOLVER == cfg.SOLVER


def test_use_from_another_project() -> None:
    """Registered on import; two calls and Detectron2's own way to a model."""
    cfg = get_cfg()
    add_defcn_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/shapes/POTO-3DMF.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    assert type(build_model(cfg)) is META_ARCH_REGISTRY.get("DeFCN") is defcn_d2.DeFCN
