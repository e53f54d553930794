"""What MkDocs does not do by itself: pages from elsewhere in the repository, their links, Sphinx's roles."""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

PAGES = {
    "reproduction/README.md": "reproduction.md",
    "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files outside of `docs`, and the pages that they become."""

ELSEWHERE = {
    "README.md": "index.md",
    "lightning_unitrole/analysis/options.py": "reference/analysis.md",
    "lightning_unitrole/loggers/scalars.py": "reference/logging.md",
    "lightning_unitrole/reports/report.py": "reference/reports.md",
}
"""Files that pages link to, and the page of the site that says the same."""

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):<code>(~?)([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and plots that lie outside of `docs`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for plot in sorted((ROOT / "reproduction" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    place = page.file.src_uri
    origin = {target: source for source, target in PAGES.items()}.get(place, f"docs/{place}")

    def turned(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link["target"]))
        target = {**PAGES, **ELSEWHERE}.get(target, target.removeprefix("docs/").removeprefix("reproduction/"))
        if files.get_file_from_path(target) is None:
            # In the text of the site it stays a link, so that a wrong one is found; a file of the repository is none.
            return link["text"] if (ROOT / origin).parent.joinpath(link["target"]).exists() else link[0]
        return f"[{link['text']}]({posixpath.relpath(target, posixpath.dirname(place) or '.')}{link['anchor'] or ''})"

    return LINK.sub(turned, markdown).replace("{{ scalars }}", scalars())


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn roles of Sphinx, as the docstrings have them, into links where their target has a place on the site."""

    def turned(role: re.Match[str]) -> str:
        short, name = role.groups()
        shown = name.rpartition(".")[2] if short else name
        return f'<autoref identifier="{name}" optional><code>{shown}</code></autoref>'

    return ROLE.sub(turned, html)


def scalars() -> str:
    """The keys of what is logged, a table out of the docstring that lists them."""
    source = (ROOT / "lightning_unitrole" / "loggers" / "scalars.py").read_text(encoding="utf-8")
    lines: Any = (ast.get_docstring(ast.parse(source)) or "").splitlines()
    first, last = (number for number, line in enumerate(lines) if line.startswith("==="))
    width = lines[first].index(" ")
    rows: list[list[str]] = []
    for line in lines[first + 1 : last]:
        key, meaning = line[:width].strip().replace("``", "`"), line[width:].strip().replace("``", "`")
        if key:
            rows.append([key, meaning])
        else:
            rows[-1][1] += f" {meaning}"
    return "\n".join(["| Key | Meaning |", "| --- | --- |", *(f"| {key} | {meaning} |" for key, meaning in rows)])
