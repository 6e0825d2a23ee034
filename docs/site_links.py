"""A hook of mkdocs: links out of docs/ work on the site as they do in the repository.

A link to a module (`../src/cips3d/trajectories.py`) leads to a page with its source. Any other file
of the repository that a page links to or shows (`../experiments/results/figure_7.png`) is copied
next to the pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<=\]\()\.\./(?!\.\.)([^)#\s]+)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files outside docs/ that pages link to; modules as pages."""
    root = Path(config.docs_dir).parent
    pages = [file for file in files.documentation_pages() if "/" not in file.src_uri]
    wanted = {target for page in pages for target in _LINK.findall(page.content_string)}
    for target in sorted(wanted):
        if not (root / target).is_file():
            continue  # stays a broken link, which --strict refuses
        if target.endswith(".py"):
            content = source_page(target, (root / target).read_text(encoding="utf-8"))
            files.append(File.generated(config, _page_name(target), content=content))
        else:
            files.append(File.generated(config, target, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """The page with such links changed to their targets on the site."""
    if "/" in page.file.src_uri:
        return markdown

    def on_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(match[1])
        return _page_name(target) if target.endswith(".py") else target

    return _LINK.sub(on_site, markdown)


def source_page(path: str, source: str) -> str:
    """A page that shows a module, with line numbers, and that the search leaves out."""
    head = "---\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n"
    return f'{head}# {path}\n\n````python linenums="1"\n{source}````\n'


def _page_name(path: str) -> str:
    return f"{path.removesuffix('.py')}.md"
