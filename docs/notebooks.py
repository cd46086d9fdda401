"""MkDocs hook: each notebook becomes a page, its code in blocks, with a link to the file itself."""

import json
import re

from mkdocs.structure.files import File


def on_files(files, config):
    """Add a page beside each notebook; the notebook stays a file to download."""
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        name = notebook.src_uri.rpartition("/")[2]
        page = notebook.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=markdown(notebook.content_string, name)))
    return files


def on_page_markdown(text, page, **_):
    """Links of other pages to a notebook lead to its page, where the pages are built."""
    return text if page.file.generated_by else re.sub(r"\]\(([\w/.-]+)\.ipynb\)", r"](\1.md)", text)


def markdown(notebook: str, name: str) -> str:
    """The cells of a notebook as one page, the link behind the first cell."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"[Download this page as a notebook]({name})")
    return "\n\n".join(parts) + "\n"
