"""Helpers that all parts share."""
