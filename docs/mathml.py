"""MkDocs hook: formulas become MathML when the pages are built, so that a browser needs no script for them."""

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(page_html: str, **_: object) -> str:
    """Replace what ``pymdownx.arithmatex`` marked as TeX."""
    page_html = INLINE.sub(lambda match: _mathml(match[1], "inline"), page_html)
    return DISPLAY.sub(lambda match: f'<div class="formula">{_mathml(match[1], "block")}</div>', page_html)


def _mathml(tex: str, display: str) -> str:
    return convert(html.unescape(tex).strip(), display=display)
