"""The gallery: a picture of each page that has one, once all pages are made."""

import base64
import html
import posixpath
import re
from collections.abc import Iterable
from typing import NamedTuple

from mkdocs.structure.pages import Page

PLACE = '<div class="gallery"></div>'
FOLDERS = "tutorials/", "papers/"
_IMAGE = re.compile(r"<img [^>]*>")
_DRAWN = re.compile(r'<svg role="img".*?</svg>', re.DOTALL)


class Card(NamedTuple):
    """A picture with its source and description, and the page that it is from."""

    source: str
    alt: str
    page: Page


def fill(pages: Iterable[Page]) -> None:
    """Puts the first picture of each tutorial and paper where the place for it is."""
    pages = list(pages)
    for gallery in pages:
        if gallery.content and PLACE in gallery.content:
            cards = (_card(page, gallery) for page in pages)
            grid = "".join(_html(card, gallery) for card in cards if card)
            grid = PLACE.replace("></", f">{grid}</")
            gallery.content = gallery.content.replace(PLACE, grid)


def _card(page: Page, gallery: Page) -> Card | None:
    if not page.file.src_uri.startswith(FOLDERS) or not page.content:
        return None
    drawn, image = _DRAWN.search(page.content), _IMAGE.search(page.content)
    if drawn:
        # As an image of its own: the names inside of two drawings may be the same.
        code = base64.b64encode(drawn[0].encode()).decode()
        alt = _attribute(drawn[0], "aria-label")
        return Card(f"data:image/svg+xml;base64,{code}", alt, page)
    if image:
        address = posixpath.normpath(page.url + _attribute(image[0], "src"))
        source = posixpath.relpath(address, gallery.url)
        return Card(source, _attribute(image[0], "alt"), page)
    return None


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf'\b{name}="([^"]*)"', tag)
    return html.unescape(found[1]) if found else ""


def _html(card: Card, gallery: Page) -> str:
    address = posixpath.relpath(card.page.url, gallery.url) + "/"
    line = re.split(r"(?<=[.?])\s", card.alt.strip(), maxsplit=1)[0]
    image = (
        f'<img src="{html.escape(card.source)}" alt="{html.escape(card.alt)}" '
        'loading="lazy">'
    )
    title = f'<a href="{address}">{html.escape(str(card.page.title))}</a>'
    below = f"<figcaption>{title}<br>{html.escape(line)}</figcaption>"
    return f"<figure>{image}{below}</figure>"
