class UserError(ValueError):
    """A mistake in what the user gave: scripts print it on one line and exit with status 2."""
