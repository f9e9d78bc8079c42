"""Evaluation beside Detectron2's own: end-to-end figures and CrowdHuman."""
