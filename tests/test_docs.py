"""Every example of the documentation runs as printed, and what it asserts is true."""

import re
from pathlib import Path

import jax
import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(page, tmp_path, monkeypatch) -> None:
    """The blocks of one page in order, in one namespace; what one of them asserts is
    checked here."""
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": page}
    before = jax.config.jax_enable_x64
    # Users have jax's own defaults.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        try:
            for block in blocks((DOCS / page).read_text()):
                # The page's name is what a traceback shows.
                exec(compile(block, page, "exec"), scope)
        finally:
            # A page may ask for another precision, as a user's program would.
            jax.config.update("jax_enable_x64", before)


def test_a_failing_example_is_seen() -> None:
    (block,) = blocks("Text.\n\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        exec(block, {})


@pytest.mark.parametrize("page", [p for p in PAGES if p.startswith("how_to_add/")])
def test_a_page_on_how_to_add_has_an_example_that_asserts(page) -> None:
    text = "".join(blocks((DOCS / page).read_text()))
    assert re.search(r"^class ", text, flags=re.MULTILINE)
    assert re.search(r"^assert ", text, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page) -> None:
    text = (DOCS / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (DOCS / page).parent.joinpath(target).exists(), target
