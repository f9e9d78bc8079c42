"""Findings in data sets before a training: ``python -m defcn_d2.data.doctor``."""
