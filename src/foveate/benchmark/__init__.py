"""Benchmarks of accuracy and cost that share one protocol."""
