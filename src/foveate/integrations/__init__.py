"""Integrations with inference engines and evaluation harnesses."""
