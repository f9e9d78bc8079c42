"""Subcommands of ``tools/benchmarks``."""
