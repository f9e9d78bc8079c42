"""What ``tools/fuzz.py`` and ``tools/fuzz_files.py`` draw, damage and judge."""
