"""Weights on the web: whether they are on this machine already, and if not, whether their host can be reached.

Libraries retry for a minute when there is no network. One quick look first spares that.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import torch
from huggingface_hub import constants, try_to_load_from_cache

from blockwise.errors import InputError

# seconds
PATIENCE = 8
# in the order in which timm looks for them
FILES = ("model.safetensors", "pytorch_model.bin")


class UnreachableError(InputError):
    """The host of pretrained weights cannot be reached.

    Attributes:
        host: The host, with its scheme.
    """

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"{host} cannot be reached ({reason})")
        self.host = host


def on_hub(repository: str, file: str | None) -> Path | None:
    """Return the weights of a repository of Hugging Face's hub if they are in the local cache."""
    for name in [file] if file else FILES:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def in_torch_cache(url: str) -> Path | None:
    """Return the file that `torch.hub` has downloaded from an address, if it has."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(url).path).name)
    return path if path.is_file() else None


def check_hub() -> None:
    """Check that Hugging Face's hub can be reached.

    Raises:
        UnreachableError: It cannot.
    """
    if constants.HF_HUB_OFFLINE:
        raise UnreachableError(constants.ENDPOINT, "HF_HUB_OFFLINE is set")
    check_host(constants.ENDPOINT)


@cache
def check_host(address: str) -> None:
    """Check that the host of an address answers within a few seconds.

    Raises:
        UnreachableError: It does not.
    """
    parts = urlsplit(address)
    host = f"{parts.scheme}://{parts.netloc}"
    pool = ThreadPoolExecutor(1)
    try:
        # in a thread, since looking up a name has no time limit
        pool.submit(requests.head, host, timeout=PATIENCE).result(timeout=PATIENCE)
    except (requests.RequestException, Late) as error:
        raise UnreachableError(host, _reason(error)) from error
    finally:
        pool.shutdown(wait=False)


def _reason(error: Any) -> str:
    text = str(error)
    if "resolve" in text or "Name or service" in text or "getaddrinfo" in text:
        return "its name is not known here"
    return "no answer" if isinstance(error, Late) or "timed out" in text else type(error).__name__
