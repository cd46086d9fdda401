"""What the API reference makes of docstrings: roles, formulas, doctests and tables of Sphinx become Markdown."""

import pytest
from docs_code import load


@pytest.fixture(scope="module")
def to_markdown():
    pytest.importorskip("griffe", reason="needs lightning_lopt[docs]: griffe is not installed")
    return load("rst_docstrings").to_markdown


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("See :class:`~a.b.Name` and :meth:`eval`.", "See `Name` and `eval`."),
        ("``code`` and :math:`x^2`", r"`code` and \(x^2\)"),
        (".. math:: a = b,\n    c = d\n\nThen", "\\[a = b, c = d\\]\n\nThen"),
        (">>> f(1)\n[1]\n\nThen", "```pycon\n>>> f(1)\n[1]\n```\n\nThen"),
        ("==  ===\na   |x|\n    y\n==  ===", "|  |  |\n| --- | --- |\n| a | \\vert x\\vert  y |"),
    ],
)
def test_docstrings_become_markdown(to_markdown, docstring, markdown):
    assert to_markdown(docstring) == markdown


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml", reason="needs lightning_lopt[docs]: latex2mathml is not installed")
    page = load("mathml").on_page_content(r'<p><span class="arithmatex">\(a &lt; b\)</span></p>')
    assert page.startswith("<p><math")
    assert "arithmatex" not in page
    assert ">a<" in page
    assert "&lt;" in page or "&#x0003C;" in page
