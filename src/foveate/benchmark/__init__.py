"""Measuring cost under one protocol."""
