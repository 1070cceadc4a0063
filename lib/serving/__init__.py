"""A local web page for a network."""
from lib.serving.server import PageServer

__all__ = ["PageServer"]
