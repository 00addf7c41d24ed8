"""The notebooks of the repository as pages: copied to `docs/tutorials` when a build begins, with their outputs."""

from pathlib import Path

from sphinx.application import Sphinx


def copy_notebooks(source: Path, target: Path) -> list[Path]:
    """Make `target` hold the notebooks of `source` and no others, and return them; equal files keep their time."""
    wanted = {path.name: path.read_bytes() for path in sorted(source.glob("*.ipynb"))}
    for stale in target.glob("*.ipynb"):
        if stale.name not in wanted:
            stale.unlink()
    for name, content in wanted.items():
        page = target / name
        if not page.exists() or page.read_bytes() != content:
            page.write_bytes(content)
    return [target / name for name in wanted]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    docs = Path(app.srcdir)
    app.connect("builder-inited", lambda _app: copy_notebooks(docs.parent / "notebooks", docs / "tutorials"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
