"""Inputs that ``fuzz.py`` and ``fuzz_files.py`` draw and damage, and their judgement."""
