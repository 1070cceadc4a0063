"""Loads models of the Hugging Face hub from this machine's cache or else from the network, if there is one."""
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

from utils.errors import UserError

T = TypeVar("T")
ANSWER_S = 5
NOT_LOADABLE = ("no such folder, and the Hugging Face hub did not provide it; see pretrained_weights/README.md for "
                "what to download, then give the folder's path; tools/make_text_encoder.py makes a small one from "
                "your own sentences, without a download")


def load(flag: str, source: str, read: Callable[[bool], T], not_loadable: str = NOT_LOADABLE) -> T:
    """Calls `read(local_only)`, which loads `source`, a folder or a hub name: first offline, then with the network.

    Raises `UserError`, which names the `flag`, for a folder whose files cannot be loaded, and one that ends with
    `not_loadable` if both ways fail. Without a network it does so at once, while the hub's client would try again for
    most of a minute.
    """
    try:
        return read(True)
    except UserError:
        raise
    except Exception as error:   # readers of damaged files raise nearly any exception
        if Path(source).is_dir():
            said = " ".join((str(error).strip() or type(error).__name__).split())[:300]
            if said.startswith("Weights only load failed"):   # PyTorch goes on with advice to run what is in the file
                said = "the weights are damaged, or hold more than tensors"
            raise UserError(f"{flag} {source}: the files in this folder cannot be loaded ({said}); fetch them again, "
                            "or give the configuration that belongs to the weights") from error
        if not isinstance(error, OSError | ValueError | RuntimeError):
            raise
        if not hub_answers():
            raise UserError(f"{flag} {source}: {not_loadable}") from error
    try:
        return read(False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{flag} {source}: {not_loadable}") from error


def hub_answers() -> bool:
    """Whether the hub's host accepts connections. Behind a proxy, which alone can tell, the answer is True."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname, address.port or 443), ANSWER_S).close()
        return True
    except OSError:
        return False
