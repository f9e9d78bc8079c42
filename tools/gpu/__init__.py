"""Parts and machinery of ``tools/gpu_check.py``."""
