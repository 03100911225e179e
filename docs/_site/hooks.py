"""What the build of the site does beside its plugins.

Pages that lie elsewhere in the repository join it; the notebooks as Markdown, so that
their links and formulas are checked and drawn like those of any page. Each block of
Python on a page is run, in one namespace a page. Formulas become MathML, which browsers
draw without a script.
"""

import html
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import latex2mathml.converter
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[2]
# Where the notebooks are that were executed last: a build that executes them itself
# says where it wrote them.
NOTEBOOKS = Path(os.environ.get("JAXCLIP_NOTEBOOKS", ROOT / "notebooks"))
# Which pages' blocks are run: all of them, or while writing a few or none, in seconds:
# `JAXCLIP_RUN=how_to/flax.md mkdocs serve`, `JAXCLIP_RUN=none mkdocs build`.
RUN = os.environ.get("JAXCLIP_RUN", "all").split(",")

_LINES = re.MULTILINE | re.DOTALL


def on_startup(**_: object) -> None:
    """Pages import `picture`, and those on meshes have devices."""
    sys.path.insert(0, str(Path(__file__).parent))
    jax.config.update("jax_num_cpu_devices", 8)
    os.environ["MPLBACKEND"] = "Agg"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The notebooks are the tutorials; the two pages at the root are the site's too."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for uri, content in _notebook(path).items():
            files.append(File.generated(config, f"tutorials/{uri}", content=content))
    for name in ("CHANGELOG", "CONTRIBUTING"):
        path = str(ROOT / f"{name}.md")
        files.append(File.generated(config, f"{name.lower()}.md", abs_src_path=path))
    return files


def _notebook(path: Path) -> dict[str, str | bytes]:
    """The page of a notebook and its pictures, by their address on the site."""
    notebook = nbformat.read(path, as_version=4)
    folder = f"{path.stem}_files"
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"output_files_dir": folder, "unique_key": path.stem}
    )
    alts = iter(_descriptions(notebook))
    text = re.sub(r"!\[(?:png|svg)\]", lambda _: f"![{next(alts)}]", text)
    title, rest = text.split("\n", 1)
    page = title + _HOSTED.format(name=path.name) + rest
    return {f"{path.stem}.md": page, **resources["outputs"]}


_HOSTED = """

[Open in Colab](https://colab.research.google.com/github/jaxclip/jaxclip/blob/main/notebooks/{name}),
or [download the notebook](https://github.com/jaxclip/jaxclip/blob/main/notebooks/{name}).

"""


def _descriptions(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What each picture shows: the last paragraph of the text before it, which says
    what to look for."""
    text = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = cell.source.strip().split("\n\n")[-1]
        for output in cell.get("outputs", ()):
            if {"image/png", "image/svg+xml"} & set(output.get("data", ())):
                yield re.sub(r"[\[\]`*$\n]+", " ", text)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Each block of Python is run where it stands, and its output shown below it."""
    if page.file.src_uri.startswith("tutorials/"):
        return markdown  # the notebook has its outputs
    # A page may have asked for another precision, as a user's program would.
    jax.config.update("jax_enable_x64", False)
    if "all" not in RUN and page.file.src_uri not in RUN:
        return re.sub(r"^```python picture\n.*?^```\n", "", markdown, flags=_LINES)
    shared = f'session="{page.file.src_uri}"\n'
    run = '```python exec="1" source="above" result="text" ' + shared
    hidden = '```python exec="1" html="1" ' + shared
    markdown = re.sub(r"^```python picture\n", hidden, markdown, flags=_LINES)
    return re.sub(r"^```python\n", run, markdown, flags=_LINES)


def on_env(env: object, files: Files, **_: object) -> None:
    """The gallery shows what the other pages have drawn."""
    import gallery  # from this folder, once it is on the path

    gallery.fill(file.page for file in files.documentation_pages() if file.page)


_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*\\([(\[])(.*?)\\[)\]]\s*</\1>', re.DOTALL
)


# What a block leaves below itself that prints nothing.
_NO_OUTPUT = re.compile(
    r'<div class="[^"]*highlight"><pre>(?:<span></span>)?<code>\s*</code></pre></div>'
)


@event_priority(-100)
def on_page_content(content: str, **_: object) -> str:
    return _FORMULA.sub(_mathml, _NO_OUTPUT.sub("", content))


def _mathml(formula: re.Match[str]) -> str:
    tag, bracket, latex = formula.groups()
    display = "inline" if bracket == "(" else "block"
    latex = html.unescape(latex).strip()
    math = latex2mathml.converter.convert(latex, display=display)
    # What a reader copies, and what is read aloud where MathML is not known.
    math = math.replace("<math ", f'<math alttext="{html.escape(latex)}" ', 1)
    return f'<{tag} class="formula">{math}</{tag}>'
