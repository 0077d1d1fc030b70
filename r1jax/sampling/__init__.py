"""Sampling responses from a model."""
