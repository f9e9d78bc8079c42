"""Several processes: launching, signals, scaling by their number."""
