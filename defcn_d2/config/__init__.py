"""Configuration: keys and defaults, files, loading, and the rules that values keep."""

from .defaults import add_defcn_config

__all__ = ["add_defcn_config"]
