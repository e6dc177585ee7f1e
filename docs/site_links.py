"""MkDocs hook: README.md is the first page of the site, which holds the files outside docs/ that a page links to."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
INDEX, OUTSIDE = "index.md", "repository/"


def on_files(files: Files, config: Any) -> Files:
    """Add README.md and, from link to link, each file of the repository that a page names."""
    known = {_source(file.src_uri) for file in files.documentation_pages()}
    waiting = ["README.md", *sorted(known)]
    while waiting:
        source = waiting.pop()
        if source not in known and (ROOT / source).is_file():
            known.add(source)
            if files.get_file_from_path(_uri(source)) is None:
                files.append(File.generated(config, _uri(source), abs_src_path=str(ROOT / source)))
        if source in known and source.endswith(".md"):
            text = (ROOT / source).read_text()
            waiting += sorted({found for _, link, _ in LINK.findall(text) if (found := _target(source, link))} - known)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of a page at the places that their files have in the site."""
    source, folder = _source(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        target = _target(source, found[2])
        return found[0] if target is None else found[1] + posixpath.relpath(_uri(target), folder or ".") + found[3]

    return LINK.sub(moved, markdown)


def _target(source: str, link: str) -> str | None:
    """The file of the repository that a link of `source` leads to, None where it leads elsewhere."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return None if "://" in link or target.startswith("..") else target


def _uri(source: str) -> str:
    """A file's place in the site's sources, from its place in the repository."""
    if source == "README.md":
        return INDEX
    return source.removeprefix("docs/") if source.startswith("docs/") else OUTSIDE + source


def _source(uri: str) -> str:
    """The reverse of `_uri`."""
    if uri == INDEX:
        return "README.md"
    return uri.removeprefix(OUTSIDE) if uri.startswith(OUTSIDE) else f"docs/{uri}"
