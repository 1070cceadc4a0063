"""Counts and metrics, tables, kinds of expressions, predictions."""
