"""Names that others chose, made safe for where they are shown: one function per target.

Names of classes, files, data sets and networks may contain anything: `/`, `|`, `<script>`, terminal commands, formulas.
HTML pages are escaped by their template, LaTeX by `analysis.tables`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

# longest name of a file, in bytes; most file systems allow 255, and a hash, a suffix or a temporary name is added
LONGEST = 150
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
# halves of UTF-16 characters that stand for no byte; files of weights may contain them
LONE = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")
# what would start a column, HTML, code or a link; the rest is harmless within a word
MARKDOWN = re.compile(r"([|<`]|\](?=[(\[])|!(?=\[))")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# a signed number, and perhaps words behind it
SIGNED = re.compile(r"[+-][\d.]+( [^|!=]*)?")


def decodable(name: str) -> str:
    """Return the name of a file as text that can be encoded: bytes that are no UTF-8 become escapes."""
    name = LONE.sub(lambda match: f"\\u{ord(match[0]):x}", name)
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    """Return a name for terminals and messages: control characters become escapes."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), decodable(name))


def some(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """Return the first few names and how many there are besides: `a, b, c and 2 more`."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def file_name(name: str) -> str:
    """Return a name for a file or folder: one part of a path, not hidden, not too long; usual names stay."""
    text = re.sub(r'[/\\:*?"<>|]', "_", printable(unicodedata.normalize("NFC", name))).strip(" ")
    text = re.sub(r"^[.]+", "_", text) or "_"
    return text.encode("utf-8")[:LONGEST].decode("utf-8", "ignore")


def markdown(text: str) -> str:
    """Return a text for a cell of a Markdown table: nothing in it is markup."""
    return MARKDOWN.sub(r"\\\1", printable(text))


def spreadsheet(text: str) -> str:
    """Return a text for a cell of a CSV file: spreadsheets do not run it as a formula.

    The apostrophe in front is what OWASP's page on CSV injection recommends.
    """
    harmless = text[:1] not in FORMULA or SIGNED.fullmatch(text)
    return text if harmless else f"'{text}"
