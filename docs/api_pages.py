"""MkDocs hook: pages of the API reference are made of the public names of packages, those in ``__all__``.

A line ``<!-- api: PACKAGE NAME NAME -->`` becomes an entry for each of these names. Without names, it becomes an entry
for each public name of the package that no page lists, so that a new public name needs no line on a page.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "api"
DIRECTIVE = re.compile(r"^<!-- api: ([\w.]+)((?: \w+)*) -->$", re.MULTILINE)
ENTRY = "::: {}\n    options:\n      heading_level: 3\n"


def on_page_markdown(text: str, page, **_) -> str:
    """Write the entries where the page lists them."""
    return with_entries(text, listed_names()) if page.file.src_uri.startswith("api/") else text


def listed_names() -> set[str]:
    """The names that pages of the reference list one by one."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md"))
    return {name for _, names in DIRECTIVE.findall(pages) for name in names.split()}


def with_entries(text: str, listed: set[str]) -> str:
    """A page with entries of mkdocstrings in place of its directives; ``listed`` are names with an entry elsewhere."""

    def entries(match: re.Match[str]) -> str:
        package, names = match[1], match[2].split()
        names = names or [name for name in public_names(package) if name not in listed]
        return "\n".join(ENTRY.format(shortest_path(package, name)) for name in names)

    return DIRECTIVE.sub(entries, text)


def public_names(package: str) -> Iterator[str]:
    """The names in ``__all__``, without ``__version__`` and without former names of classes."""
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        is_former = inspect.isclass(value) and value.__name__ != name
        if not name.startswith("__") and not is_former:
            yield name


def shortest_path(package: str, name: str) -> str:
    """The path from which a name is imported: from ``lightning_lopt`` if it is public there."""
    top = importlib.import_module("lightning_lopt")
    return f"lightning_lopt.{name}" if name in top.__all__ else f"{package}.{name}"
