"""Optimiser and update step, the state of a run, its record."""
