"""Prepared weights: found, converted and verified."""
