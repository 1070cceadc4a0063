"""Pixel counts, metrics, tables, kinds of expressions, predictions. It imports nothing, because args.py imports it."""

NO_TARGET_PIXELS = 50  # a predicted mask of fewer pixels, at 480 × 480, means no target; --no_target_pixels changes it
