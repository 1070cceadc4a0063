"""The two kinds of failure that are not bugs of this code."""


class UserError(ValueError):
    """A mistake in the user's input: scripts print it in one line and exit with status 2."""


class MachineError(RuntimeError):
    """A failure outside the program: scripts print it in one line and exit with status 1."""
