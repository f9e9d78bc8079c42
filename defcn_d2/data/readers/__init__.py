"""Readers of annotations: COCO, CrowdHuman, own data."""
