"""Components that a config chooses by name: registries, config nodes, construction.

One rule for keys: the node of a component carries its name and is made from its keyword arguments.
``class OneToAFew: def __init__(self, *, few: int = 7)`` in the registry of matchers has the key
``MODEL.DEFCN.MATCHER.OneToAFew.FEW`` from then on, and no key is declared twice.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

from .rules import ArgumentError, ConfigError, unknown_name

# Types of values that a config can hold.
_VALUES = (bool, int, float, str, list, tuple)


class ComponentRegistry(Registry):
    """Detectron2's ``Registry``, of classes whose keyword arguments are keys of the config.

    Arguments without a default are no keys: whoever builds the component gives them, as all those
    of ``given``. ``**arguments`` in a constructor stands for the arguments of the base class. A
    class may have

    - ``problems(cfg, key) -> Iterator[str]``, a classmethod: what elsewhere in the config
      contradicts the component at ``key``, each a sentence;
    - attributes in which other components look, such as ``priors`` or ``gives_quality`` of
      matchers: the docstring of its registry says which.
    """

    def __init__(self, name: str, given: Iterable[str] = ()):
        """
        Args:
            given: names of arguments that are no keys although they have a default.
        """
        super().__init__(name)
        self.given = frozenset(given)
        self._defaults: dict[str, str] = {}

    def register(self, obj: Any = None, *, default: Iterable[str] = ()) -> Any:
        """Add a class, as Detectron2's ``Registry.register``.

        Args:
            default: nodes below ``MODEL.DEFCN`` whose ``NAME`` is this class unless set.
        """

        def registered(kind: Any) -> Any:
            super(ComponentRegistry, self).register(kind)
            self._defaults.update(dict.fromkeys(default, kind.__name__))
            return kind

        return registered if obj is None else registered(obj)

    def names(self) -> list[str]:
        """Names of all components, sorted."""
        return sorted(name for name, _ in self)

    def keys_of(self, name: str) -> dict[str, Any]:
        """Arguments of a component that are keys, with their defaults."""
        return {
            argument: default
            for argument, default in _arguments(self.get(name)).items()
            if isinstance(default, _VALUES) and argument not in self.given
        }

    def node(self, place: str) -> CfgNode:
        """A config node: ``NAME``, and below each component's name its keys.

        Args:
            place: of the node below ``MODEL.DEFCN``, such as "AUX.MATCHER".
        """
        node = CfgNode({"NAME": self._defaults.get(place, "")})
        for name in self.names():
            keys = self.keys_of(name)
            node[name] = CfgNode({argument.upper(): _value(x) for argument, x in keys.items()})
        return node

    def find(self, node: CfgNode, key: str) -> Any:
        """The class that ``node.NAME`` names; ``key``: where the node stands, for errors.

        Raises:
            ConfigError: there is no such component.
        """
        if node.NAME not in self:
            raise ConfigError(unknown_name(f"{key}.NAME", node.NAME, self.names()))
        return self.get(node.NAME)

    def values_of(self, node: CfgNode) -> dict[str, Any]:
        """Arguments of the component that ``node.NAME`` names, with their values in the config.

        Those of a component registered after the config was made have no node: the defaults.
        """
        own = node.get(node.NAME, {})
        return {
            argument: own.get(argument.upper(), _value(default))
            for argument, default in self.keys_of(node.NAME).items()
        }

    def build(self, node: CfgNode, key: str, **given: Any) -> Any:
        """The component that ``node.NAME`` names, made from its own node and from ``given``.

        Args:
            node: as from ``node``.
            key: where it stands, such as "MODEL.DEFCN.MATCHER", for errors.
            given: of these, the component gets those that its constructor has.

        Raises:
            ConfigError: there is no such component, or a value breaks a rule of its constructor.
        """
        kind = self.find(node, key)
        values = self.values_of(node)
        wanted = _arguments(kind)
        values.update({name: value for name, value in given.items() if name in wanted})
        try:
            return kind(**values)
        except ArgumentError as error:
            place = "MODEL.DEFCN" if error.name.partition(".")[0] in given else f"{key}.{node.NAME}"
            raise ConfigError(error.sentence(f"{place}.{error.name.upper()}")) from error

    def problems(self, cfg: CfgNode, node: CfgNode, key: str) -> Iterator[str]:
        """Sentences of the component that ``node.NAME`` names on what contradicts it."""
        check: Callable | None = getattr(self.find(node, key), "problems", None)
        if check is not None:
            yield from check(cfg, key)


def _arguments(kind: Any) -> dict[str, Any]:
    """Keyword arguments of a class with their defaults, those behind ``**arguments`` included."""
    found: dict[str, Any] = {}
    for base in inspect.getmro(kind):
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY:
                found.setdefault(parameter.name, parameter.default)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def _value(default: Any) -> Any:
    return [_value(x) for x in default] if isinstance(default, (list, tuple)) else default


def own_node(node: CfgNode) -> CfgNode:
    """The keys of the component that ``node.NAME`` names."""
    return node.get(node.NAME, CfgNode())


def import_modules(package: str, path: Iterable[str]) -> None:
    """Import the modules of a package's folder, so that what they register is there."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
