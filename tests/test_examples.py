"""Every example in a docstring runs, and every public function has an example."""

import inspect
import re
import textwrap

import jax
import pytest

from test_architecture import PUBLIC
from test_docs import DOCS, blocks

# What an example takes as given, as a user has it at hand who reads it.
_MODEL = """
params = {"w": jnp.ones(3)}
loss = lambda params, x: (jnp.dot(params["w"], x) - 1.0) ** 2 / 2
"""
_GIVEN = {
    "Adaptive": "",
    "algorithm.spider": """
l0, l1, eps = 1.0, 1.0, 0.1
params = jnp.ones(3)
known = jc.algorithm.spider(jc.HardClip(1.0), jc.algorithm.PeriodicSpider(2))
state = known.init(params), optax.EmptyState()
new = old = params
""",
    "algorithm.stable_adam": "",
    "EdgeFlow": "",
    "limit.AdamZeroLossFlow": "",
    "as_transform": "",
    "basins": """
wells = jc.Landscape(lambda x: (x**2 - 1) ** 2 / 4, jnp.array(0.5))
starts, minima = jnp.linspace(-2.0, 2.0, 4), jnp.array([1.0, -1.0])
lrs, thresholds = jnp.array([0.1, 0.5]), jnp.array([0.1, 1.0])
""",
    "clipped_grad": _MODEL + """
batch, optimiser = jnp.ones((64, 3)), optax.sgd(0.1)
state = optimiser.init(params)
""",
    "clipped_value_and_grad": _MODEL + """
batch = jnp.ones((64, 3))
""",
    "privacy.epsilon": "c, n, z = 1.0, 64, 1.1",
    "privacy.noise_multiplier": "",
    "transform.ClippedGradient": _MODEL + """
policy, batch = jaxclip.policy.Percentile(50.0), jnp.ones((64, 3))
""",
    "transform.LivePlot": _MODEL + """
optimiser = jaxclip.monitor(jaxclip.as_transform(jaxclip.HardClip(1.0)))
state, batches = optimiser.init(params), jnp.ones((4, 3))


@jax.jit
def train_step(params, state, batch):
    updates, state = optimiser.update(jax.grad(loss)(params, batch), state)
    return optax.apply_updates(params, updates), state
""",
    "diagnosis.check_chain": _MODEL + """
gradients = {"w": jnp.ones((20, 3))}
""",
    "PerUnit": "",
    "clip_metrics": _MODEL + """
logger = type("Logger", (), {"log": print})
""",
    "safe_norm": "",
    "skip_spikes": "",
    "monitor": _MODEL + """
watched = jaxclip.monitor(jaxclip.as_transform(jaxclip.HardClip(1.0)))
state = optax.chain(watched, optax.adam(1e-3)).init(params)
""",
    "limit.GeneralisedODE": "",
    "problem.Poisson": "",
    "policy.AdaGC": "",
    "policy.Criterion": _MODEL,
    "policy.AGGC": "",
    "policy.GradientStabilizer": "",
    "unroll": _MODEL + """
lr, batches = 0.1, jnp.ones((4, 2, 3))
gradients = jax.vmap(jax.grad(loss), (None, 0))
validation = jnp.ones((5, 3))
mean_loss = lambda params, xs: jnp.mean(jax.vmap(loss, (None, 0))(params, xs))
""",
}  # fmt: skip
_IMPORTS = """
import jax
import jax.numpy as jnp
import optax
import jaxclip
import jaxclip as jc
"""


def _examples(name: str) -> list[str]:
    """The blocks in a docstring, those of a class's methods included."""
    value = PUBLIC[name]
    docs = [inspect.getdoc(value) or ""]
    if inspect.isclass(value):
        docs += [inspect.getdoc(member) or "" for member in vars(value).values()]
    return [block for doc in docs for block in blocks(textwrap.dedent(doc))]


def test_the_examples_of_docstrings_are_known():
    assert {name for name in PUBLIC if _examples(name)} == set(_GIVEN)


@pytest.mark.parametrize("name", _GIVEN)
def test_the_example_of_a_docstring_runs(name, monkeypatch):
    scope = {"__name__": name}
    # Users have jax's own defaults.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        exec(_IMPORTS + _GIVEN[name], scope)
        for block in _examples(name):
            exec(compile(block, name, "exec"), scope)


# Code in a page of the documentation, which `test_docs.py` runs.
_CODE = "".join(
    block for page in DOCS.rglob("*.md") for block in blocks(page.read_text())
)
_FUNCTIONS = [name for name, value in PUBLIC.items() if not inspect.isclass(value)]


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_every_public_function_has_an_example_that_is_run(name):
    assert re.search(rf"\bjc\.{re.escape(name)}\(", _CODE), name


_FAMILIES = [name for name, value in PUBLIC.items() if inspect.isabstract(value)]


@pytest.mark.parametrize("name", _FAMILIES)
def test_every_family_has_an_example_that_is_run(name):
    """One of its own classes is made, or one is derived from it."""
    of_it = [n for n, v in PUBLIC.items() if inspect.isclass(v)]
    of_it = [n for n in of_it if issubclass(PUBLIC[n], PUBLIC[name])]
    used = [n for n in of_it if re.search(rf"\bjc\.{re.escape(n)}\b", _CODE)]
    assert used, name
