"""The detector: backbone, neck, head, matchers, criteria and losses."""
