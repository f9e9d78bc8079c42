"""A config from a file and KEY VALUE pairs, with errors that name the mistake."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg

from ..data import DatasetError, register_datasets
from ..utils.errors import UserError, as_user_error, did_you_mean, first_line
from .defaults import add_defcn_config
from .files import config_file as packaged_file
from .files import config_names
from .model_rules import keys_in_use, keys_of
from .rules import value_of

_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?:\w+\.)*(\w+)'> vs\. <class '(?:\w+\.)*(\w+)'>\) "
    r"with values \((.*) vs\. (.*)\) for config key: (\S+)",
    re.DOTALL,
)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The frozen config of a file, changed by ``opts``; its ``DATASETS.REGISTER`` is registered.

    Args:
        config_file: a yaml file, or the short name of one that comes with the package, such as
            "shapes/POTO"; "" for Detectron2's and this project's defaults.
        opts: KEY VALUE pairs, flat, as on a command line.

    Raises:
        UserError: no such file, key or type of value; the message names the nearest valid one. Or
            the classes are to be read from a file of ``DATASETS.REGISTER`` that is of no use.
    """
    cfg = get_cfg()
    add_defcn_config(cfg)
    if config_file:
        _merge_file(cfg, find_config_file(config_file))
    _merge_opts(cfg, opts)
    expand_home(cfg)
    with as_user_error(DatasetError, "{}"):
        register_datasets(cfg)
    cfg.freeze()
    return cfg


def expand_home(cfg: CfgNode) -> None:
    """Replace ``~`` in the paths of a config by the home folder, as a shell would."""
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    cfg.MODEL.WEIGHTS = os.path.expanduser(cfg.MODEL.WEIGHTS)


def find_config_file(name: str) -> str:
    """The file for a short name, if it is one and there is no file of that name; else ``name``."""
    if name and not os.path.exists(name) and name in config_names():
        return str(packaged_file(name))
    return name


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    # A file that is there, by its name.
    path = Path(os.path.expanduser(config_file))
    if "://" not in config_file and not path.is_file():
        near = _file_near(path)
        if not path.suffix and "://" not in config_file:  # meant as a short name
            near = did_you_mean(config_file, config_names())
        raise UserError(f"configuration file {config_file!r} does not exist; {near}")
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"configuration file {config_file!r} is not a .yaml file, give one")

    # Its content, with one sentence for each way that reading can fail.
    try:
        address = str(path) if "://" not in config_file else config_file
        # by default Detectron2 builds any Python object that a yaml asks for
        cfg.merge_from_file(address, allow_unsafe=False)
    except FileNotFoundError as error:
        raise UserError(
            f"configuration file {config_file!r} is based on {error.filename!r}, which does not "
            "exist; correct its _BASE_"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        if "tag:yaml.org,2002:python" in problem:
            problem += "; tags of Python are not read, as they can run code: write the value itself"
        message = f"configuration file {config_file!r}{where} cannot be read: {problem}"
        raise UserError(message) from error
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise UserError(f"configuration file {config_file!r}: {_explain(error, cfg)}") from error
    except RecursionError as error:
        raise UserError(
            f"configuration file {config_file!r} is nested too deeply; is it based on itself?"
        ) from error


def _file_near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r} here, in {os.getcwd()}"
    files = [str(folder / file.name) for file in folder.glob("*.yaml")]
    return did_you_mean(str(path), files) if files else f"{str(folder)!r} holds no .yaml file"


def _merge_opts(cfg: CfgNode, opts: Sequence[str]) -> None:
    for text in opts[::2]:
        if text.startswith("--"):
            raise UserError(f"{text!r} stands among the KEY VALUE pairs: put options before them")
        if "=" in text:
            raise UserError(f"{text!r} is no configuration key: write KEY VALUE, not KEY=VALUE")
    if len(opts) % 2:
        raise UserError(f"configuration key {opts[-1]!r} has no value: give KEY VALUE pairs")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        node = _node_of(cfg, key)
        if node is not None:
            raise UserError(f"{key!r} is a group of keys: {', '.join(list(node)[:12])}")
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError, TypeError) as error:
            raise UserError(_explain(error, cfg)) from error


def _node_of(cfg: CfgNode, key: str) -> CfgNode | None:
    """The group of keys that ``key`` names; None if it names none."""
    node = cfg
    for name in key.split("."):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node if isinstance(node, CfgNode) else None


def _explain(error: Exception, cfg: CfgNode) -> str:
    """The sentence for what yacs says of a key or a value."""
    text = first_line(error)
    unknown = re.match(r"Non-existent (?:config )?key: (\S+)", text)
    if unknown:
        key = unknown[1]
        hint = did_you_mean(key, keys_of(cfg), keys_in_use(cfg))
        return f"unknown configuration key {key!r}; {hint}"
    mismatch = _MISMATCH.match(str(error))
    if mismatch:
        expected, found, default, value, key = mismatch.groups()
        if expected == "CfgNode":
            return f"{key} is a group of keys, but is set to {value!r}"
        example = default or repr(default)
        if (expected, found) == ("tuple", "str"):
            example = f"\"('{value}',)\""
        elif expected == "str":  # a folder such as 2017 is taken for a number
            example = f"\"'{value}'\""
        article = "an" if expected == "int" else "a"
        return f"{key} is {value!r}, but must be {article} {expected}, such as {example}"
    return text


@contextlib.contextmanager
def value_errors_as_user_errors(cfg: CfgNode) -> Iterator[None]:
    """Within the block, errors that a value of the config has caused become ``UserError``."""
    try:
        yield
    except (KeyError, ValueError) as error:
        sentence = value_at_fault(error, cfg)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def value_at_fault(error: Exception, cfg: CfgNode) -> str | None:
    """The sentence for an error that a value in the config has caused; None for any other.

    That is one whose message names a key of the config, or a look-up of what is its value.
    """
    keys = list(keys_of(cfg))
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        value = error.args[0]
        for key in keys:
            if value_of(cfg, key) == value:
                return f"{key} {value!r} is unknown; correct it or leave it out for the default"
    named = re.findall(r"\b[A-Z]+(?:\.[A-Z0-9_]+)+\b", str(error))
    if any(f".{key}".endswith(f".{name}") for name in named for key in keys):
        return first_line(error)
    return None
