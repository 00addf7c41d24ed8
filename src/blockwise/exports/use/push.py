"""Hand an export folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from blockwise.errors import InputError, first_line
from blockwise.exports.folder import read_export


def check_repository(name: str) -> None:
    """Raise InputError if a repository on the hub cannot have a name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # documented there

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"--push-to-hub {name}: the hub has no such names ({first_line(error)}): use <user>/<model>"
        ) from error


def push_to_hub(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Upload an export folder, and return the address of its page; a repository that is there is updated.

    Args:
        folder: An export folder.
        name: Name of the repository: `<user or organisation>/<model>`.
        private: Make a new repository private.

    Raises:
        InputError: The folder is not an export, or the hub refuses it.
    """
    from huggingface_hub import HfApi

    exported = read_export(folder)
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=exported.folder).commit_url)
    except Exception as error:  # the library has errors of many types
        raise InputError(f"--push-to-hub {name}: the hub refuses it ({first_line(error)}): hf auth login?") from error
