"""Names for classes, from a file: tables and reports show them in place of the names of folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockwise.errors import InputError
from blockwise.io.files import read_regular
from blockwise.io.names import some


def read_class_names(file: str | Path | Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a file gives to classes.

    It is a text file with one name per line, in the order of the classes, or with the class, white space and its name
    on each line; or a JSON file with a list of names or a dictionary from classes to names. Names of further classes
    are ignored in dictionaries and lines with both.

    Args:
        file: The file; or the names themselves, in the order of the classes.
        classes: The classes as the data set calls them, in the order of their labels.

    Raises:
        InputError: The file cannot be read, a class has no name, or two classes have the same name.
    """
    content = _content(Path(file).expanduser(), classes) if isinstance(file, (str, Path)) else list(file)
    if isinstance(content, dict):
        if missing := [name for name in classes if name not in content]:
            raise InputError(f"data.classes={file} has no name for {some(missing)}")
        names = [content[name] for name in classes]
    else:
        names = content
        if len(names) != len(classes):
            raise InputError(
                f"data.classes={file} has {len(names)} names for {len(classes)} classes: give one for each, in the "
                f"order {some(classes)}"
            )
    _check(str(file), names)
    return tuple(names)


def _content(path: Path, classes: Sequence[str]) -> dict[str, Any] | list[Any]:
    text = _read(path)
    return _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_lines(text, classes)


def _read(path: Path) -> str:
    try:
        text = read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"data.classes={path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"data.classes={path} is not text in UTF-8") from error
    if "\0" in text:
        raise InputError(f"data.classes={path} is not text in UTF-8")
    return text


def _parse_json(path: Path, text: str) -> dict[str, Any] | list[Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"data.classes={path} is not JSON ({error})") from error
    if not isinstance(content, (dict, list)):
        raise InputError(f"data.classes={path} is neither a list of names nor a dictionary from classes to names")
    return content


def _parse_lines(text: str, classes: Sequence[str]) -> dict[str, str] | list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = {first: rest.strip() for first, _, rest in (line.partition("\t") for line in lines) if rest}
    pairs |= {words[0]: words[1] for words in (line.split(maxsplit=1) for line in lines) if len(words) == 2}
    return pairs if set(classes) <= set(pairs) else lines


def _check(file: str, names: Sequence[Any]) -> None:
    """Check that each name is a text that names one class."""
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise InputError(f"data.classes={file} has {wrong[0]!r} in place of a name")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"data.classes={file} names two classes {twice[0]!r}: give each class a name of its own")
