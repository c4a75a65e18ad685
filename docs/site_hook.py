"""What MkDocs does not do by itself when it makes the site of docs/.

- Pages link to files of the repository outside docs/. The site has those as pages below source/:
  Markdown as it is, other text as code, a directory as the list of its files.
- Mermaid diagrams are drawn while the site is built, by mermaid itself without a browser.
- Lists are read as GitHub reads them.
- A build that would load anything from another host fails.
"""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from mermaidx import render
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.superfences import SuperFencesException

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"

_FENCE: Final = re.compile(r"^( *)(```+|~~~+)(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK: Final = re.compile(r"(?<=\]\()([^)\s]+)(?=\))|(?<=\]: )(\S+)$", re.MULTILINE)
_LANGUAGES: Final = {".yml": "yaml", ".rs": "rust", ".ts": "typescript", ".service": "ini"}

# Of a directory, the texts of its files are shown if they have no more characters together.
_SHOWN: Final = 60_000

# What a page may load: a source of one of these elements with another host is refused.
_LOADED: Final = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*?\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)",
    re.IGNORECASE,
)
_LOADED_BY_CSS: Final = re.compile(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file outside docs/ that a page leads to."""
    wanted = [path for page in sorted(DOCS.rglob("*.md")) for path in _outside(page)]
    made: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in made:
            continue
        made.add(path)
        text = _text_of(path)
        files.append(File.generated(config, _source_page(path), content=text))
        if path.suffix == ".md":
            wanted += _outside(path)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page, with links to pages of the site, and lists that Python-Markdown understands."""
    del config, files
    uri = page.file.src_uri
    if not uri.startswith("source/"):
        markdown = _relinked(markdown, DOCS / uri)
    return "".join(part if is_code else _lists(part) for part, is_code in _parts(markdown))


def on_post_build(*, config: MkDocsConfig) -> None:
    """Raise PluginError if a page would load something from another host."""
    foreign = []
    for path in Path(config.site_dir).rglob("*.js"):
        # The theme's script would fetch mermaid, and what old browsers lack, from there.
        path.write_text(path.read_text("utf-8").replace("https://unpkg.com/", "/"), "utf-8")
    for path in Path(config.site_dir).rglob("*"):
        pattern = {".html": _LOADED, ".css": _LOADED_BY_CSS}.get(path.suffix)
        for found in pattern.finditer(path.read_text("utf-8")) if pattern else ():
            foreign.append(f"{path.name}: {next(filter(None, found.groups()))}")
    if foreign:
        raise PluginError(f"the site would load from other hosts: {', '.join(foreign)}")


def drawn(source: str, *_: Any, **__: Any) -> str:
    """A mermaid diagram as SVG in a page. Raises SuperFencesException if it is none: any other
    error would leave the text of the diagram there."""
    try:
        svg = render(source).svg()
    except Exception as exc:
        raise SuperFencesException(f"a diagram can't be drawn: {exc}\n{source}") from exc
    # Its styles are those of an id, which must be its own in the page.
    own = f"diagram-{zlib.crc32(source.encode()):x}"
    return f'<div class="diagram">{svg.replace("my-svg", own)}</div>'


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and whether each is a fence."""
    at = 0
    for fence in _FENCE.finditer(markdown):
        yield markdown[at : fence.start()], False
        yield fence[0], True
        at = fence.end()
    yield markdown[at:], False


def _lists(text: str) -> str:
    """With an empty line before each list that follows a paragraph, and its items' further lines
    indented by four."""
    lines: list[str] = []
    depth: int | None = None
    for line in text.split("\n"):
        item = re.match(r"( *)([-*]|\d+\.) +(?=\S)", line)
        if item and not item[1]:
            if depth is None and lines and lines[-1].strip():
                lines.append("")
            depth = len(item[0])
        elif line.strip() and not line.startswith(" "):
            if depth is not None and lines and not lines[-1].strip():
                depth = None
        elif depth is not None and line.startswith(" " * depth) and depth < 4:
            line = " " * (4 - depth) + line
        lines.append(line)
    return "\n".join(lines)


def _links(markdown: str) -> Iterator[str]:
    for part, is_code in _parts(markdown):
        if not is_code:
            yield from (found[1] or found[2] for found in _LINK.finditer(part))


def _target(link: str, page: Path) -> Path | None:
    """The file or directory that a link of a page leads to, unless it is an address."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", link):
        return None
    return Path(os.path.normpath(page.parent / path))


def _outside(page: Path) -> list[Path]:
    """What a page leads to outside docs/."""
    targets = (_target(link, page) for link in _links(page.read_text("utf-8")))
    return [path for path in targets if path and path != DOCS and DOCS not in path.parents]


def _source_page(path: Path) -> str:
    """The page of a file or a directory outside docs/."""
    name = PurePosixPath("source", path.relative_to(ROOT).as_posix())
    if path.is_dir():
        return str(name / "index.md")
    return str(name) if path.suffix == ".md" else f"{name}.md"


def _relinked(markdown: str, page: Path) -> str:
    """With its links as they are in the site."""
    here = PurePosixPath(_uri(page)).parent

    def relinked(found: re.Match[str]) -> str:
        path = _target(found[0], page)
        if path is None:
            return found[0]
        _, mark, anchor = found[0].partition("#")
        return os.path.relpath(_uri(path), here) + mark + anchor

    return "".join(
        part if is_code else _LINK.sub(relinked, part) for part, is_code in _parts(markdown)
    )


def _uri(path: Path) -> str:
    """Where a file is in the site."""
    if path == DOCS:
        return "index.md"
    return path.relative_to(DOCS).as_posix() if DOCS in path.parents else _source_page(path)


def _text_of(path: Path) -> str:
    """The page of a file or a directory outside docs/, as Markdown."""
    name = path.relative_to(ROOT).as_posix()
    hidden = "---\nsearch:\n  exclude: true\n---\n\n"
    if path.suffix == ".md":
        return _relinked(path.read_text("utf-8"), path)
    if path.is_file():
        return f"{hidden}# {name}\n\n{_code(path)}"
    listed = _tracked(name)
    texts = [path / each for each in listed if "/" not in each]
    head = f"{hidden}# {name}\n\n" + "".join(f"- `{each}`\n" for each in listed)
    if sum(each.stat().st_size for each in texts) > _SHOWN:
        return head
    return head + "".join(f"\n## {each.name}\n\n{_code(each)}" for each in texts)


def _tracked(directory: str) -> list[str]:
    """The files of a directory that belong to the repository."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "."],
        cwd=ROOT / directory, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return sorted(filter(None, done.stdout.split("\0")))


def _code(path: Path) -> str:
    language = _LANGUAGES.get(path.suffix, path.suffix.removeprefix("."))
    return f"````{language}\n{path.read_text('utf-8').rstrip()}\n````\n"
