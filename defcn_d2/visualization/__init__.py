"""Pictures that explain a detector: what ``tools/visualize.py`` draws."""
