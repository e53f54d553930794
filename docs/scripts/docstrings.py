"""Examples in docstrings, which stand there as doctests, become code on the site."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^[ ]*>>>.*\n?)(?:^[ ]*\S.*\n?)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Puts fences around each run of lines that begins with a prompt."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(example: re.Match[str]) -> str:
    code = re.sub(r"[ ]*# doctest:.*", "", example[0].rstrip("\n"))
    indent = " " * (len(code) - len(code.lstrip(" ")))
    return f"{indent}```pycon\n{code}\n{indent}```\n"
