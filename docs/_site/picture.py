"""Figures of the site's pages, drawn by the build and put into the page as SVG."""

import html
import io

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

plt.rcParams.update(
    {
        "figure.figsize": (6.4, 3.6),
        "figure.constrained_layout.use": True,
        # The text of a picture is text, which a reader can search and enlarge.
        "svg.fonttype": "none",
        "font.family": "sans-serif",
    }
)


def picture(drawn: Axes | Figure, alt: str, caption: str = "") -> str:
    """A figure as the page's own HTML, with `alt` for who does not see it.

    **Arguments:**

    - `drawn`: the figure, or axes of it. It is closed.
    - `alt`: what the picture shows, in a sentence or two.
    - `caption`: printed below it; none by default.
    """
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close("all")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(
        "<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1
    )
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="picture">{svg}{below}</figure>'
