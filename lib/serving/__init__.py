"""A network behind a page on this machine."""
from lib.serving.server import PageServer

__all__ = ["PageServer"]
