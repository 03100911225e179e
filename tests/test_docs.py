"""Every example of the documentation runs as printed, and what it asserts is true.

Links and cross references are checked where the site is built, `mkdocs build --strict`.
"""

import json
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxclip as jc
from test_architecture import PUBLIC

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def blocks(text: str) -> list[str]:
    """The blocks of Python, those that draw a picture of the site's page among them."""
    fenced = r"^```python(?: picture)?\n(.*?)^```$"
    return re.findall(fenced, text, flags=re.DOTALL | re.MULTILINE)


# Every page is run where the site is built, which CI does; the tests of every push run
# those that an author of a new part begins from.
_LONG = {f"how_to_add/{page}.md" for page in ("engine", "injection")}
_ALWAYS = {p for p in PAGES if p.startswith("how_to_add/")} - _LONG


@pytest.mark.parametrize(
    "page",
    [p if p in _ALWAYS else pytest.param(p, marks=pytest.mark.slow) for p in PAGES],
)
def test_the_examples_run(page, tmp_path, monkeypatch) -> None:
    """The blocks of one page in order, in one namespace; what one of them asserts is
    checked here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS / "_site")
    scope = {"__name__": page}
    # Users have jax's own defaults, as the site's build has.
    jax.config.update("jax_enable_x64", False)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks((DOCS / page).read_text()):
            # The page's name is what a traceback shows.
            exec(compile(block, page, "exec"), scope)


@pytest.mark.slow
def test_the_explorer_has_the_curves_of_batches(monkeypatch) -> None:
    """It solves single examples at a smaller rate and with more steps; here are the
    batches that it stands for."""
    monkeypatch.syspath_prepend(DOCS / "_site")
    import explorer

    found, batch, at = explorer.table(), 1, 5
    size, threshold = found["batches"][batch], found["thresholds"][at]
    spectrum = jc.Spectrum.isotropic(explorer.DIMENSION)
    steps = jnp.array([0, 5 * explorer.DIMENSION, 20 * explorer.DIMENSION])
    for place, noise in ((0, jc.Gaussian(1.0)), (3, jc.StudentT(3.0, 3**-0.5))):
        problem = jc.LinearModel(spectrum, noise, jnp.array([jnp.sqrt(2.0)]))
        clip = jc.HardClip(threshold * spectrum.feature_norm)
        how = {"batch_size": size, "scope": jc.PerExample()}
        curve = jc.solve(
            problem, clip, explorer.RATE / explorer.DIMENSION, steps=steps, **how
        )
        shown = found["noises"][place]["risk"][batch][at]
        picked = [shown[found["times"].index(time)] for time in (0.0, 5.0, 20.0)]
        # The page has three digits.
        np.testing.assert_allclose(picked, curve.risk, rtol=5e-3)


def test_a_failing_example_is_seen() -> None:
    (block,) = blocks("Text.\n\n```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        exec(block, {})


@pytest.mark.parametrize("page", [p for p in PAGES if p.startswith("how_to_add/")])
def test_a_page_on_how_to_add_has_an_example_that_asserts(page) -> None:
    text = "".join(blocks((DOCS / page).read_text()))
    assert re.search(r"^class ", text, flags=re.MULTILINE)
    assert re.search(r"^assert ", text, flags=re.MULTILINE)


QUESTIONS = [p for p in PAGES if p.startswith("how_to/") and p != "how_to/index.md"]


@pytest.mark.parametrize("page", QUESTIONS)
def test_a_question_is_answered_by_code_and_says_what_goes_wrong(page) -> None:
    text = (DOCS / page).read_text()
    assert re.match(r"# .+\?", text)  # "... What is it called here?"
    assert "assert " in "".join(re.findall(r"^```py.*?^```$", text, re.M | re.S))
    assert "\n## Pitfalls\n" in text


def test_all_questions_are_on_the_list() -> None:
    """Under the words that the page has as its title."""
    listed = dict(
        (target, title)
        for title, target in re.findall(
            r"^- \[(.+)\]\((.+)\)$", (DOCS / "how_to/index.md").read_text(), re.M
        )
    )
    titles = {
        page.removeprefix("how_to/"): (DOCS / page).read_text().split("\n")[0][2:]
        for page in QUESTIONS
    }
    assert listed == titles


def test_where_to_clip_has_the_numbers_of_its_notebook() -> None:
    """A table of losses is on a page, and the notebook that measured them is not run
    by it."""
    path = DOCS.parent / "notebooks" / "14_where_to_clip.ipynb"
    printed = "".join(
        "".join(output.get("text", ""))
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", ())
    )
    measured = re.findall(r"^(no clip|\w+) +(0\.\d{3}(?: ± 0\.\d{3})?)$", printed, re.M)
    page = (DOCS / "how_to/before_or_after_adam.md").read_text()
    rows = re.findall(r"^\| (?:the )?(\w+) \| (0\..+) \| (0\..+) \|$", page, re.M)
    table = [
        (name, number) for k in (1, 2) for name, number in ((r[0], r[k]) for r in rows)
    ]
    names = {"no clip": "nothing", "update": "update", "gradient": "gradient"}
    assert [(names.get(name, name), number) for name, number in measured] == table


def _resolve(name: str) -> object:
    value = jc
    for part in name.split("."):
        # A field is there once an instance is made.
        if part in getattr(value, "__dataclass_fields__", ()):
            return part
        value = getattr(value, part)
    return value


REFERENCES = {
    (str(path.relative_to(DOCS.parent)), name)
    for path in (DOCS.parent / "jaxclip").rglob("*.py")
    for name in re.findall(r"\[`jaxclip\.([\w.]+)`\]\[\]", path.read_text())
}


def test_references_lead_somewhere() -> None:
    assert len(REFERENCES) > 100
    for path, name in sorted(REFERENCES):
        assert _resolve(name) is not None, path


def test_every_public_name_has_one_place_in_the_reference() -> None:
    pages = (DOCS / "reference").glob("*.md")
    text = "".join(page.read_text() for page in pages)
    places = re.findall(r"^::: jaxclip\.(\S+)$", text, re.MULTILINE)
    assert not [name for name, count in Counter(places).items() if count > 1]
    assert not set(PUBLIC) - set(places)
    assert all(_resolve(name) is not None for name in places)


def test_what_moved_is_where_the_page_says() -> None:
    """The new names are there, and the old ones are not, but as other things."""
    rows = re.findall(
        r"^\| `(.+?)`.*? \| (.+) \|$", (DOCS / "moved.md").read_text(), re.M
    )
    assert len(rows) > 80
    now = [re.findall(r"`([\w.]+)", cell) for _, cell in rows]
    for names in now:
        found = [name for name in names if name.split(".")[0] in dir(jc)]
        for name in found:
            assert _resolve(name) is not None
    for old, names in zip((old for old, _ in rows), now, strict=True):
        if old.isidentifier() and old not in (name for each in now for name in each):
            assert not hasattr(jc, old), f"{old} is now {names}"
