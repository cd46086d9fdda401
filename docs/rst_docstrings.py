"""mkdocstrings extension: the roles and formulas of Sphinx in docstrings become Markdown.

``:class:`~package.module.Name``` becomes ``Name`` in code type, ``:math:`x``` and ``.. math::`` become TeX between the
delimiters of ``pymdownx.arithmatex``, two backticks become one, and doctests become fenced blocks, and simple tables
tables of Markdown.
"""

import re

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`([^`]*)`")
INLINE = re.compile(r":math:`([^`]*)`")
DISPLAY = re.compile(r"^( *)\.\. math::[ \t]*(.*(?:\n(?:\1[ \t]+.*|[ \t]*(?=\n\1[ \t]+)))*)", re.MULTILINE)
LITERAL = re.compile(r"(?<!`)``(?!`)(.+?)(?<!`)``(?!`)", re.DOTALL)
VERBATIM = re.compile(r"::$", re.MULTILINE)
DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*|\n\1 +\S.*)*", re.MULTILINE)
TABLE = re.compile(r"^( *)=+  =+\n(?:.*\n)*?\1=+  =+$", re.MULTILINE)


def to_markdown(text: str) -> str:
    r"""A docstring as Markdown.

    >>> to_markdown("See :class:`~a.b.C`, :math:`x^2` and ``code``.")
    'See `C`, \\(x^2\\) and `code`.'
    """
    text = TABLE.sub(_table, DOCTEST.sub(_fenced, text))
    text = DISPLAY.sub(_display, text)
    text = INLINE.sub(lambda match: rf"\({match[1]}\)", text)
    text = ROLE.sub(lambda match: f"`{_label(match[1])}`", text)
    text = LITERAL.sub(r"`\1`", text)
    return VERBATIM.sub(":", text)


def _display(match: re.Match[str]) -> str:
    tex = " ".join(line.strip() for line in match[2].splitlines() if line.strip())
    return f"{match[1]}\\[{tex}\\]"


def _fenced(match: re.Match[str]) -> str:
    return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"


def _table(match: re.Match[str]) -> str:
    """A simple table of two columns, whose rows may go on in further lines, as a Markdown table without a head."""
    lines = [line[len(match[1]) :] for line in match[0].splitlines()]
    second = lines[0].index(" ") + 2
    rows: list[list[str]] = []
    for line in lines[1:-1]:
        if line[:second].strip():
            rows.append([line[:second].strip(), line[second:].strip()])
        else:
            rows[-1][1] += " " + line.strip()
    cells = [[cell.replace("|", r"\vert ") for cell in row] for row in rows]
    return "\n".join(f"{match[1]}| {first} | {rest} |" for first, rest in [["", ""], ["---", "---"], *cells])


def _label(target: str) -> str:
    """What Sphinx would show of a reference: its last part after ``~``, its text before ``<...>``."""
    shown = re.sub(r"\s*<.*>$", "", target, flags=re.DOTALL)
    return shown.rsplit(".", 1)[-1] if shown.startswith("~") else shown.lstrip(".")


class RstDocstrings(griffe.Extension):
    """Converts each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
