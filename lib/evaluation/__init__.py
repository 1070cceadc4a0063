"""Counts and metrics, tables, kinds of expressions, predictions. Imports nothing: args.py reads the number below."""

NO_TARGET_PIXELS = 50  # a mask of fewer means that there is no target; at 480 × 480, unless a flag says otherwise
