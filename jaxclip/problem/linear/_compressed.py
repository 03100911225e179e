"""A linear model in few modes, as its limits see it."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..._checks import count
from ...noise import AbstractNoise
from ._equivalent import Equivalent, equivalent
from ._loss import AbstractLoss, SquaredLoss
from ._modes import Modes
from ._power_law import check_model, unexplained


class CompressedLinearModel(eqx.Module):
    """What the risk ODE needs of a [`jaxclip.LinearModel`][], in a few modes.

    Made by its `compress`. [`jaxclip.solve`][] takes it in place of the problem.

    **Fields:**

    - `modes`: twice as many [`jaxclip.problem.Modes`][] as the nodes asked for.
    - `noise`: the label noise.
    - `error`: the error of the compression; see `compress`.
    - `loss`: that of the problem.
    """

    modes: Modes
    noise: AbstractNoise
    error: Float[Array, ""]
    loss: AbstractLoss = SquaredLoss()

    @classmethod
    def power_law_features(
        cls,
        alpha: float,
        beta: float,
        variables: int,
        features: int,
        *,
        noise: AbstractNoise | None = None,
        nodes: int = 48,
    ) -> "CompressedLinearModel":
        r"""Power-law random features of any number, without a draw of them.

        What the models of [`jaxclip.LinearModel`][]'s `power_law_features` have in
        common, to about one over the number of features: their deterministic
        equivalent. It takes a fraction of a second for any size, $10^9$ features too.
        All have the same number of modes, so that sizes can be stacked and solved by
        one `vmap`.

        The equivalent is that of arXiv:2405.15074; that a Gauss quadrature of it, from
        resolvents at negative arguments, gives the modes is derived here.

        **Arguments:**

        - `alpha`, `beta`, `variables`, `features`, `noise`: as of the draws.
        - `nodes`: the most for each of the two measures of the eigenvalues. Few need
            more than 40; with fewer than are needed they lie further apart.

        **Returns:**

        A compressed model. Its `noise.std` is the standard deviation of the unexplained
        part of the target, whose half square is the least loss. Its `error` compares
        with fewer nodes, and is above that of these.
        """
        numbers = check_model(alpha, beta, variables, features)
        nodes = count("nodes", nodes, least=4)
        found = equivalent(*numbers, nodes - 1)
        modes = _modes(found, nodes)
        # A fifth of the resolvents less, by which the error is seen.
        less = found.ridges - max(1, found.ridges // 5)
        fewer = _modes(equivalent(*numbers, less), nodes)
        error = jnp.asarray(fewer.difference(modes))
        return cls(modes, unexplained(found.irreducible, noise), error)


def _modes(found: Equivalent, nodes: int) -> Modes:
    """Modes of both measures, and as many without any mass as there are too few."""
    eigenvalues, masses = [], []
    for at, mass in (found.risk, found.forcing):
        empty = nodes - len(at)
        eigenvalues.append(np.pad(at, (0, empty), mode="edge"))
        masses.append(np.pad(mass, (0, empty)))
    zero = np.zeros(nodes)
    columns: list[Any] = [
        np.concatenate(eigenvalues),
        np.concatenate([masses[0], zero]),
        np.concatenate([zero, masses[1]]),
    ]
    dtype = jnp.result_type(float)
    return Modes(*(jnp.asarray(column, dtype) for column in columns))
