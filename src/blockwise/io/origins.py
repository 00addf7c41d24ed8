"""Names of networks that bring a config of their own, as timm writes them.

`hf-hub:<org>/<name>`, perhaps with `@<revision>`, is a repository of Hugging Face's hub; `local-dir:<folder>` is a
folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from blockwise.errors import InputError
from blockwise.io.names import file_name, printable

HUB, FOLDER = "hf-hub:", "local-dir:"
# the hub's own rules: no name starts or ends with - or ., and none contains -- or ..
PART = r"\w(?:[\w.-]*\w)?"
REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.))({PART}/{PART})(?:@({PART}(?:/{PART})*))?", re.ASCII)
# of a repository, which is the hub's limit, and of a revision
LONGEST = 96


def has_origin(name: str) -> bool:
    """Return whether a name is that of a network with a config of its own."""
    return name.startswith((HUB, FOLDER))


def check_origin(name: str) -> None:
    """Check the form of a name that has an origin.

    Raises:
        InputError: It names no repository, or no folder.
    """
    if name.startswith(HUB):
        repository(name)
    else:
        folder(name)


def repository(name: str) -> tuple[str, str | None]:
    """Return the repository and the revision that `hf-hub:<org>/<name>@<revision>` names.

    Raises:
        InputError: It names none.
    """
    match = REPOSITORY.fullmatch(name.removeprefix(HUB))
    if match is None or any(len(part or "") > LONGEST for part in match.groups()):
        raise InputError(
            f"{printable(name)[:300]} names no repository of the hub: write hf-hub:<org>/<name>, "
            "such as hf-hub:timm/resnet18.a1_in1k, and @<revision> if it matters"
        )
    return match[1], match[2]


def folder(name: str) -> Path:
    """Return the folder that `local-dir:<folder>` names.

    Raises:
        InputError: It names none.
    """
    path = name.removeprefix(FOLDER)
    if not path.strip() or printable(path) != path:
        raise InputError(f"{printable(name)} names no folder: write local-dir:<folder with a config.json>")
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, an unknown user
        raise InputError(f"{name} names no folder ({error})") from error


def short_name(name: str) -> str:
    """Return the name of a network in records and paths: `org--name`, the last part of a folder, or the name itself.

    >>> short_name("hf-hub:timm/vit.augreg@v2"), short_name("local-dir:/networks/mine"), short_name("vgg16")
    ('timm--vit.augreg--v2', 'mine', 'vgg16')
    """
    if name.startswith(HUB):
        return "--".join(part for part in repository(name) if part).replace("/", "--")
    return file_name(folder(name).name) if name.startswith(FOLDER) else name
