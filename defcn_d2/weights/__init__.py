"""Files of weights: safe reading, the release's names, checkpoints."""
