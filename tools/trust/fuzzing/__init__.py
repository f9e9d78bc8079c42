"""What ``tools/trust/fuzz.py`` and ``tools/trust/fuzz_files.py`` draw, damage and judge."""
