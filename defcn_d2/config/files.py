"""The configs that come with the package, by short names such as "shapes/POTO-3DMF".

They are the files of ``configs/`` at the top of the repository, which a wheel holds as
``defcn_d2/configs/``.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from .defaults import add_defcn_config

_PACKAGE = Path(__file__).resolve().parents[1]


def config_folder() -> Path:
    """The folder of the configs: the installed package's, else that of the checkout around it.

    Raises:
        FileNotFoundError: there is none, as where a part of a checkout was copied by hand.
    """
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs"):
        if (folder / "Base-DeFCN.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"the configs of defcn_d2 are missing beside {str(_PACKAGE)!r}; install the package "
        "again, or use a whole checkout of it"
    )


def config_names() -> list[str]:
    """Short names of all configs that describe a model; bases of others are not among them."""
    folder = config_folder()
    names = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
    return sorted(name.as_posix() for name in names if not name.name.startswith("Base-"))


def config_file(name: str) -> Path:
    """The file of a config.

    Args:
        name: one of ``config_names()``, with or without ".yaml".

    Raises:
        ValueError: there is none of this name; the message has the nearest ones.
    """
    short = name.removesuffix(".yaml")
    names = config_names()
    if short in names:
        return config_folder() / f"{short}.yaml"
    tail = short.rpartition("/")[2]
    near = [known for known in names if known.rpartition("/")[2] == tail][:3]
    near = near or difflib.get_close_matches(short, names, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"one of: {', '.join(names)}"
    )
    raise ValueError(f"there is no config {name!r}; {hint}")


def get_config(name: str, opts: Sequence[object] = ()) -> CfgNode:
    """A config that comes with the package, for ``build_model`` or a trainer.

    Args:
        name: one of ``config_names()``, such as "POTO-3DMF" or "shapes/POTO-3DMF".
        opts: KEY, VALUE, ... that change it.

    Returns:
        a config of Detectron2 with this project's keys, not frozen.

    Raises:
        ValueError: there is none of this name; the message has the nearest ones.
    """
    cfg = get_cfg()
    add_defcn_config(cfg)
    cfg.merge_from_file(str(config_file(name)), allow_unsafe=False)
    cfg.merge_from_list(list(opts))
    return cfg
