"""Weights on the web: whether they are on this machine already, and if not, whether their host can be reached.

Libraries retry for a minute when there is no network. One quick look first spares that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)

# `huggingface_hub.errors` of older releases lacks some of them
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from blockwise.errors import InputError
from blockwise.io.names import printable

# seconds
PATIENCE = 8
# in the order in which timm looks for them
FILES = ("model.safetensors", "pytorch_model.bin")
SHA256 = re.compile(r"[0-9a-f]{64}")


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


def fetch(repository: str, files: Sequence[str], revision: str | None, shown: str) -> Path:
    """Return the first of these files that a repository of the hub has, from the local cache or downloaded.

    Args:
        repository: `<org>/<name>`.
        files: Names of files; the first that is there is taken.
        revision: A branch, a tag or a commit; None: `main`.
        shown: What messages call the repository.

    Raises:
        InputError: The file is not on this machine, and the hub cannot be reached or refuses it.
    """
    for file in files:
        found = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(found, str):
            return Path(found)
    try:
        check_hub()
    except UnreachableError as error:
        raise InputError(
            f"{shown} is not on this machine, and {error}: run once where there is a network, or copy its files to a "
            "folder and write local-dir:<folder>"
        ) from error
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, revision=revision))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError):  # the connection broke
                raise InputError(f"{shown} cannot be downloaded ({_short(error)}): try again") from error
        except Exception as error:
            raise _refused(shown, error) from error
    raise InputError(f"{shown} is not a network of timm: the repository has no {' or '.join(files)}")


def published_hash(repository: str, files: Sequence[str], revision: str) -> str | None:
    """Return the SHA-256 that the hub tells of a file of weights, without downloading it; None if it tells none."""
    try:
        check_hub()
    except UnreachableError:
        return None
    for file in files:
        try:
            tag = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=PATIENCE).etag
        except Exception:  # noqa: S112 (a file of another name, no permission, no network)
            continue
        return tag if tag and SHA256.fullmatch(tag) else None
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


def _refused(shown: str, error: Exception) -> InputError:
    if isinstance(error, GatedRepoError):
        return InputError(f"{shown} is gated: ask for access on its page of the hub, then run hf auth login")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{shown} is not on {constants.ENDPOINT}, or it is private: check the name, or run hf auth login"
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{shown} has no such revision: name a branch, a tag or a commit of it")
    return InputError(f"{shown} cannot be downloaded ({_short(error)}): try again")


def _short(error: Exception) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__)[:200]


def _reason(error: Any) -> str:
    text = str(error)
    if "resolve" in text or "Name or service" in text or "getaddrinfo" in text:
        return "its name is not known here"
    return "no answer" if isinstance(error, Late) or "timed out" in text else type(error).__name__
