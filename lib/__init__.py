"""The networks, their training, evaluation, checkpoints and use."""
