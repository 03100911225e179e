"""A model and the data that it fits: what a noise is injected into."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from ...._checks import leading_length
from ...._types import Params, PyTree
from ....clip import AbstractClip

# Of the parameters and one input, and of what an injection adds: a number, or a vector.
Model = Callable[..., Any]


class Fit(eqx.Module):
    r"""A model and the data that it fits, without any noise.

    It is what an injection sees of its problem; a [`jaxclip.Interpolation`][] hands it
    its own arguments, which are documented there. The residuals of all outputs of all
    examples are one vector $r(w)$ of length $m$, in the unit of a label.

    **Fields:**

    - `model`: a function of the parameters and of one input. The injection
        [`jaxclip.inject.Dropout`][] hands it multipliers as a third argument.
    - `start`: the parameters at step 0, a pytree of arrays.
    - `xs`: the inputs, a pytree of arrays with a leading axis of length `n`.
    - `ys`: the labels, shape `(n, ...)`.
    - `residual_clip`: the rule for each residual.
    """

    model: Model = eqx.field(static=True)
    start: Params
    xs: PyTree[Array]
    ys: Float[Array, "n ..."]
    residual_clip: AbstractClip

    @property
    def size(self) -> int:
        """The number $n$ of examples."""
        return len(self.ys)

    @property
    def dimension(self) -> int:
        """The number $d$ of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.start))

    def residuals(
        self, params: Params, multipliers: Float[Array, " units"] | None = None
    ) -> Float[Array, " m"]:
        """What the outputs exceed the labels by, as one vector.

        **Arguments:**

        - `params`: of the structure of `start`.
        - `multipliers`: the third argument of the model, if it takes one.
        """

        def model(params, x):
            more = () if multipliers is None else (multipliers,)
            return self.model(params, x, *more)

        outputs = jax.vmap(model, (None, 0))(params, self.xs)
        if outputs.shape != self.ys.shape:
            raise ValueError(
                "`model` must return for each input what the shape of its label is. "
                f"Got outputs of shape {outputs.shape} and `ys` of shape "
                f"{self.ys.shape}."
            )
        return (outputs - self.ys).reshape(-1)

    def jacobian(self, params: Params) -> Float[Array, "m d"]:
        """The Jacobian of the residuals, in flat parameters."""
        rows = jax.jacrev(self.residuals)(params)
        return jax.vmap(lambda row: ravel_pytree(row)[0])(rows)

    def gradient(
        self, residuals: Callable[[Params], Float[Array, " m"]], params: Params
    ) -> Params:
        r"""$\tfrac1n \sum_i \psi(r_i) \nabla r_i$ with $\psi(r) = r f(|r|)$, the factor
        $f$ that of `residual_clip`: the gradient of $\tfrac{1}{2n} |r|^2$ where it does
        not clip.

        **Arguments:**

        - `residuals`: a function of the parameters: $r$, with or without noise.
        - `params`: where.
        """
        values, pull = jax.vjp(residuals, params)
        # A threshold that is a function of the step is taken at step 0: a problem does
        # not know which step it is asked for.
        clipped = values * self.residual_clip.factor(jnp.abs(values), 0)
        return pull(clipped / self.size)[0]

    def take(self, rows: Int[Array, " b"]) -> "Fit":
        """The same model on some of the examples, with the thresholds of their
        residuals."""
        xs, ys = jax.tree.map(lambda leaf: leaf[rows], (self.xs, self.ys))

        def pick(leaf):
            # Either a number for all residuals or one for each of them.
            each = jnp.shape(leaf) == (self.ys.size,) and self.ys.size > 1
            return leaf.reshape(self.size, -1)[rows].reshape(-1) if each else leaf

        clip = jax.tree.map(pick, self.residual_clip)
        return Fit(self.model, self.start, xs, ys, clip)


def check_data(xs: PyTree[Array], ys: Array) -> None:
    """Refuses inputs and labels whose leading axes differ."""
    leading_length("`xs` and `ys`", (xs, ys), "examples")
