"""Configuration: keys and defaults, files, loading, and the rules that values keep."""
