"""Registries of components: keys from keyword arguments, construction, errors that name the key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from helpers import tiny_cfg

from defcn_d2 import add_defcn_config
from defcn_d2.config.components import ComponentRegistry, own_node
from defcn_d2.config.load import load_config
from defcn_d2.config.rules import ArgumentError, ConfigError, check_argument, numbers
from defcn_d2.modeling.criterion import CRITERION_REGISTRY
from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.modeling.head import HEAD_REGISTRY
from defcn_d2.modeling.loss import CLASS_LOSS_REGISTRY
from defcn_d2.modeling.matcher import MATCHER_REGISTRY
from defcn_d2.modeling.matcher.fcos import FCOS
from defcn_d2.modeling.matcher.foreground_loss import ForegroundLoss
from defcn_d2.modeling.neck import NECK_REGISTRY
from defcn_d2.utils.errors import UserError

KEY = "MODEL.DEFCN.PART"


@pytest.fixture
def registry() -> ComponentRegistry:
    """With ``Engine``, which is the default, ``Turbo``, derived from it, and ``Sail``."""
    parts = ComponentRegistry("PART", given=["suffix"])

    @parts.register(default=["PART", "AUX.PART"])
    class Engine:
        def __init__(
            self,
            *,
            wheels: int,
            power: float = 1.5,
            fuels: tuple = ("a", "b"),
            tuned: bool = False,
            suffix: str = "",
            hook: object = None,
        ):
            check_argument("power", power, numbers("[0, inf)"))
            check_argument("wheels", wheels, numbers("[1, inf)"))
            self.arguments = {
                "wheels": wheels,
                "power": power,
                "fuels": fuels,
                "tuned": tuned,
                "suffix": suffix,
                "hook": hook,
            }

    @parts.register()
    class Turbo(Engine):
        def __init__(self, *, boost: int = 2, power: float = 9.0, **arguments):
            super().__init__(power=power, **arguments)
            self.boost = boost

    @parts.register()
    class Sail:
        pass

    return parts


def test_keys_are_the_keyword_arguments_with_a_value(registry: ComponentRegistry) -> None:
    """Not those that the builder gives, nor one that is no value of a config."""
    own = {"power": 1.5, "fuels": ("a", "b"), "tuned": False}
    assert registry.names() == ["Engine", "Sail", "Turbo"]
    assert registry.keys_of("Engine") == own
    # Behind **arguments stand those of the base class, whose defaults the class may change.
    assert registry.keys_of("Turbo") == {**own, "boost": 2, "power": 9.0}
    assert registry.keys_of("Sail") == {}


def test_keys_of_a_class_that_takes_them_from_two_bases_up(registry: ComponentRegistry) -> None:
    @registry.register()
    class Quiet(registry.get("Turbo")):
        """Without a constructor."""

    @registry.register()
    class Fixed(registry.get("Turbo")):
        def __init__(self, *, wheels: int, few: int = 3):
            super().__init__(wheels=wheels)

    assert registry.keys_of("Quiet") == registry.keys_of("Turbo")
    assert registry.keys_of("Fixed") == {"few": 3}


def test_node(registry: ComponentRegistry) -> None:
    node = registry.node("PART")
    assert node == {
        "NAME": "Engine",
        "Engine": {"POWER": 1.5, "FUELS": ["a", "b"], "TUNED": False},
        "Sail": {},
        "Turbo": {"POWER": 9.0, "FUELS": ["a", "b"], "TUNED": False, "BOOST": 2},
    }
    assert registry.node("AUX.PART").NAME == "Engine"
    assert registry.node("ELSEWHERE").NAME == ""
    node.Engine.FUELS.append("c")
    assert registry.node("PART").Engine.FUELS == ["a", "b"]
    assert own_node(node) is node.Engine
    node.NAME = "Boat"
    assert own_node(node) == {}


def test_built_from_its_keys_and_what_is_given(registry: ComponentRegistry) -> None:
    node = registry.node("PART")
    node.merge_from_list(["NAME", "Turbo", "Turbo.BOOST", 4, "Turbo.TUNED", True])
    node.Engine.POWER = 7.0  # of another component
    built = registry.build(node, KEY, wheels=3, suffix="_x", hook=len, unwanted=1)
    assert built.boost == 4
    assert built.arguments == {
        "wheels": 3,
        "power": 9.0,
        "fuels": ["a", "b"],
        "tuned": True,
        "suffix": "_x",
        "hook": len,
    }
    node.NAME = "Sail"
    assert isinstance(registry.build(node, KEY, wheels=3), registry.get("Sail"))


def test_a_component_that_the_config_came_before_has_its_defaults(
    registry: ComponentRegistry,
) -> None:
    node = registry.node("PART")

    @registry.register()
    class Late:
        def __init__(self, *, size: int = 5):
            self.size = size

    node.NAME = "Late"
    assert registry.values_of(node) == {"size": 5}
    assert registry.build(node, KEY).size == 5
    assert registry.node("PART").Late == {"SIZE": 5}


def test_a_wrong_value_is_an_error_of_its_key(registry: ComponentRegistry) -> None:
    node = registry.node("PART")
    node.Engine.POWER = -1.0
    with pytest.raises(ConfigError) as error:
        registry.build(node, KEY, wheels=2)
    assert str(error.value) == f"{KEY}.Engine.POWER is -1.0, but must be at least 0"
    assert isinstance(error.value.__cause__, ArgumentError)
    # What the builder gives comes from a key that belongs to no component.
    node.Engine.POWER = 1.0
    with pytest.raises(ConfigError, match=r"^MODEL\.DEFCN\.WHEELS is 0, but must be at least 1$"):
        registry.build(node, KEY, wheels=0)


def test_an_argument_of_a_part_is_named_by_the_key_of_the_part() -> None:
    registry = ComponentRegistry("PART")

    @registry.register(default=["PART"])
    class Whole:
        def __init__(self, *, part: dict, own: int = 1):
            check_argument("part.size", part["size"], numbers("[1, inf)"))

    with pytest.raises(ConfigError, match=r"^MODEL\.DEFCN\.PART\.SIZE is 0, but must be at"):
        registry.build(registry.node("PART"), "MODEL.DEFCN.KIND", part={"size": 0})


def test_other_errors_of_a_constructor_stay_what_they_are() -> None:
    registry = ComponentRegistry("PART")

    @registry.register(default=["PART"])
    class Broken:
        def __init__(self):
            raise ValueError("a mistake of the program")

    with pytest.raises(ValueError, match="^a mistake of the program$") as error:
        registry.build(registry.node("PART"), KEY)
    assert not isinstance(error.value, ConfigError)


def test_unknown_name(registry: ComponentRegistry) -> None:
    node = registry.node("PART")
    node.NAME = "Engin"
    for action in (registry.find, registry.build):
        with pytest.raises(ConfigError) as error:
            action(node, KEY)
        assert str(error.value) == (
            f"{KEY}.NAME 'Engin' is unknown; one of: Engine, Sail, Turbo (did you mean 'Engine'?)"
        )


def test_a_component_says_what_contradicts_it(registry: ComponentRegistry) -> None:
    @registry.register()
    class Careful:
        @classmethod
        def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
            yield f"{key}.{cls.__name__} does not like {cfg.THING}"

    node, cfg = registry.node("PART"), CfgNode({"THING": 3})
    assert list(registry.problems(cfg, node, KEY)) == []
    node.NAME = "Careful"
    assert list(registry.problems(cfg, node, KEY)) == [f"{KEY}.Careful does not like 3"]


REGISTRIES = {
    "HEAD": HEAD_REGISTRY,
    "MATCHER": MATCHER_REGISTRY,
    "CRITERION": CRITERION_REGISTRY,
    "LOSS": CLASS_LOSS_REGISTRY,
    "NECK": NECK_REGISTRY,
}


@pytest.mark.parametrize("place", REGISTRIES)
def test_the_config_has_the_node_of_every_registry(place: str) -> None:
    cfg = get_cfg()
    add_defcn_config(cfg)
    registry = REGISTRIES[place]
    assert cfg.MODEL.DEFCN[place] == registry.node(place)
    for name in registry.names():
        assert {key.upper() for key in registry.keys_of(name)} == set(cfg.MODEL.DEFCN[place][name])
    if place != "NECK":
        assert cfg.MODEL.DEFCN.AUX[place] == registry.node(f"AUX.{place}")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("MODEL.DEFCN.MATCHER.POTOAux.SOLVER", "MODEL.DEFCN.MATCHER.POTO.SOLVER"),
        ("MODEL.DEFCN.MATCHER.ALPHA", "MODEL.DEFCN.MATCHER.POTO.ALPHA"),
        ("MODEL.DEFCN.MATCHER.POTO.RADIUSS", "MODEL.DEFCN.MATCHER.POTO.RADIUS"),
        ("MODEL.DEFCN.LOSS.FocalLoss.BETA", "MODEL.DEFCN.LOSS.QualityFocalLoss.BETA"),
        (
            "MODEL.DEFCN.CRITERION.DenseCriterion.SOFT_LABEL",
            "MODEL.DEFCN.CRITERION.DenseCriterion.SOFT_LABELS",
        ),
        (
            "MODEL.DEFCN.CRITERION.DenseCriterion.SUFFIX",  # the builder gives it
            None,
        ),
    ],
)
def test_a_key_that_the_component_does_not_have_is_refused(key: str, near: str | None) -> None:
    with pytest.raises(UserError, match=rf"^unknown configuration key '{key}'; ") as error:
        load_config("", [key, "1"])
    if near:
        assert str(error.value).endswith(f"did you mean '{near}'?")


@pytest.fixture
def late_components() -> Iterator[tuple[CfgNode, list]]:
    """A config, and components that are registered after it was made, each derived from another."""
    cfg = tiny_cfg()
    bases = [(CRITERION_REGISTRY, DenseCriterion), (MATCHER_REGISTRY, FCOS)]
    bases.append((MATCHER_REGISTRY, ForegroundLoss))
    late = []
    for registry, base in bases:
        kind = type(f"Late{base.__name__}", (base,), {})
        registry.register(kind)
        late.append(kind)
    yield cfg, late
    for (registry, _), kind in zip(bases, late, strict=True):
        del registry._obj_map[kind.__name__]


def test_models_of_late_components_are_checked_and_built(late_components: tuple) -> None:
    cfg, (criterion, *matchers) = late_components
    cfg.MODEL.DEFCN.CRITERION.NAME = criterion.__name__
    for matcher in matchers:
        cfg.MODEL.DEFCN.MATCHER.NAME = matcher.__name__
        built = build_model(cfg).criteria[0]
        assert type(built) is criterion and type(built.matcher) is matcher


def test_models_of_components_that_fix_arguments_of_their_base_are_checked_and_built() -> None:
    class FixedCriterion(DenseCriterion):
        def __init__(self, *, matcher, class_loss, suffix: str = "", extra: float = 1.0):
            super().__init__(matcher=matcher, class_loss=class_loss, suffix=suffix, reg_weight=3)

    class FixedFCOS(FCOS):
        def __init__(self, *, radius: float = 2.0):
            super().__init__(radius=radius)

    class FixedForegroundLoss(ForegroundLoss):
        def __init__(self, *, radius: float = 2.0):
            super().__init__(radius=radius)

    CRITERION_REGISTRY.register(FixedCriterion)
    MATCHER_REGISTRY.register(FixedFCOS)
    MATCHER_REGISTRY.register(FixedForegroundLoss)
    try:
        for name in ("FixedFCOS", "FixedForegroundLoss"):
            cfg = tiny_cfg(
                *("MODEL.DEFCN.CRITERION.NAME", "FixedCriterion"),
                *("MODEL.DEFCN.MATCHER.NAME", name, f"MODEL.DEFCN.MATCHER.{name}.RADIUS", 1.0),
            )
            criterion = build_model(cfg).criteria[0]
            assert criterion.reg_weight == 3 and criterion.matcher.radius == 1.0
    finally:
        del CRITERION_REGISTRY._obj_map["FixedCriterion"]
        del MATCHER_REGISTRY._obj_map["FixedFCOS"]
        del MATCHER_REGISTRY._obj_map["FixedForegroundLoss"]
