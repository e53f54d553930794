"""Run the tutorials, and write what they print below the code that prints it.

    python docs/scripts/tutorials.py            # run them all
    python docs/scripts/tutorials.py --write    # and put what they print into the pages
    python docs/scripts/tutorials.py watch      # one of them

A page is one program: its blocks of Python run from top to bottom, with the same variables. A block that prints is
followed by a block of text, which holds what it printed.
"""

import argparse
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "tutorials"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<text>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Work in an empty folder, which is gone afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def run(page: str) -> tuple[dict[str, Any], list[str | None]]:
    """The variables that a page ends with, and what each of its blocks printed; None where the page shows nothing.

    Raises:
        ValueError: if a block prints and the page has no place for it, or the reverse.
    """
    source = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: list[str | None] = []
    with scratch():
        for block in BLOCK.finditer(source):
            # Line numbers in a traceback are those of the page.
            blank = "\n" * source.count("\n", 0, block.start("code"))
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(blank + block["code"], f"{page}.md", "exec"), names)
            if bool(out.getvalue()) != (block["text"] is not None):
                raise ValueError(f"{page}.md: this block and what stands below it do not agree:\n{block['code']}")
            printed.append(out.getvalue() or None)
    return names, printed


def write(page: str, printed: list[str | None]) -> None:
    """Put what was printed into the page."""
    path = FOLDER / f"{page}.md"
    outputs = iter(printed)

    def filled(block: re.Match[str]) -> str:
        output = next(outputs)
        code = f"```python\n{block['code']}```\n"
        return code if output is None else f"{code}\n```text\n{output}```\n"

    path.write_text(BLOCK.sub(filled, path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="page", help=f"some of {', '.join(PAGES)}; all by default")
    parser.add_argument("--write", action="store_true", help="put what they print into the pages")
    arguments = parser.parse_args()
    for page in arguments.pages or PAGES:
        printed = run(page)[1]
        print(f"== {page}\n" + "\n".join(output for output in printed if output))
        if arguments.write:
            write(page, printed)


if __name__ == "__main__":
    main()
