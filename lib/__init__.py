"""The networks, their losses, their evaluation and their checkpoints."""
