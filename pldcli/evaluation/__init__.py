"""Measure models."""
