"""HTML and SVG for notebooks and files: every text that comes from somewhere else goes through `text`.

No colours are set here, so a notebook's theme applies, light or dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .terminal import escaped


def text(given: object) -> str:
    r"""Text for an element or a quoted attribute: without markup, and without characters that XML doesn't have.

    >>> print(text('<script>"\x00'))
    &lt;script&gt;&quot;\x00
    """
    return escape(escaped(str(given)).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff"))


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts. Without `columns` the first cell of each row is its heading."""
    head = "".join(f'<th scope="col" style="text-align:left">{text(column)}</th>' for column in columns)
    body = "".join(f"<tr>{''.join(_cell(cell, at, columns) for at, cell in enumerate(row))}</tr>" for row in rows)
    return (
        f'<table><caption style="text-align:left;font-weight:bold">{text(caption)}</caption>'
        f"{f'<thead><tr>{head}</tr></thead>' if columns else ''}<tbody>{body}</tbody></table>"
    )


def _cell(cell: object, at: int, columns: Sequence[str]) -> str:
    tag = "td" if columns or at else 'th scope="row"'
    return f'<{tag} style="text-align:left;white-space:pre-wrap">{text(cell)}</{tag.split()[0]}>'
