"""A line about this package in Detectron2's environment report."""

from __future__ import annotations

import os

from detectron2.utils import collect_env

from . import ops

_MARK = "_defcn_d2"


def report() -> str:
    """Where this package is and which 3D max filter it uses."""
    from . import __version__

    return f"defcn_d2 {__version__} @{os.path.dirname(__file__)}: {ops.report()}"


def add_to_environment_report() -> None:
    """Let ``detectron2.utils.collect_env.collect_env_info()`` end with :func:`report`'s line.

    The report has no place to register at. In every version it ends with what the function
    ``collect_torch_env`` of its module returns, looked up when it is called: the line is appended
    there, and so appears wherever the report is printed or logged. Calling this again changes
    nothing.
    """
    original = collect_env.collect_torch_env
    if hasattr(original, _MARK):
        return

    def collect_torch_env() -> str:
        return f"{original().rstrip()}\n{report()}\n"

    setattr(collect_torch_env, _MARK, True)
    collect_env.collect_torch_env = collect_torch_env
