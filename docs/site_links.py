"""A hook of mkdocs: links out of docs/ work on the site as they do in the repository.

A link to a module (`../src/cips3d/camera.py`) leads to its part of the API pages; any other file of the repository that a page
links to or shows (`../experiments/results/figure_7.png`) is put beside the pages.
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
_API = re.compile(r"^::: (cips3d[\w.]*)", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the files outside docs/ that pages link to."""
    root = Path(config.docs_dir).parent
    pages = [file for file in files.documentation_pages() if "/" not in file.src_uri]
    wanted = {target for page in pages for target in _LINK.findall(page.content_string)}
    for target in sorted(wanted - {module_path(name) for name in _api_pages(files)}):
        if (root / target).is_file():  # what is missing stays a broken link, which --strict refuses
            files.append(File.generated(config, target, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, files: Files, **_: Any) -> str:
    """The page with such links turned to where their targets are on the site."""
    if "/" in page.file.src_uri:
        return markdown
    modules = {module_path(name): f"{uri}#{name}" for name, uri in _api_pages(files).items()}
    return _LINK.sub(lambda match: modules.get(match[1], posixpath.normpath(match[1])), markdown)


def module_path(name: str) -> str:
    """Where a module's source is in the repository."""
    return f"src/{name.replace('.', '/')}.py"


def _api_pages(files: Files) -> dict[str, str]:
    """The API page of each module that has one."""
    pages = [file for file in files.documentation_pages() if file.src_uri.startswith("api/")]
    return {name: page.src_uri for page in pages for name in _API.findall(page.content_string)}
