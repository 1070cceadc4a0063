"""Optimiser, update step, state and record of a training run."""
