"""The parameters of a problem, as a user passes them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._types import Params


def as_parameters(name: str, params: Any) -> Params:
    """`params` as a pytree of arrays of floats; what is none is refused by name."""

    def convert(leaf):
        floats = eqx.is_array_like(leaf) and jnp.issubdtype(
            jnp.result_type(leaf), jnp.floating
        )
        if not floats:
            raise ValueError(
                f"`{name}` must be a pytree of arrays of floats. Got the leaf {leaf!r}"
                "; split a model by `equinox.partition(model, equinox.is_inexact_array)"
                "` and put it together in the loss."
            )
        return jnp.asarray(leaf)

    params = jax.tree.map(convert, params)
    if not jax.tree.leaves(params):
        raise ValueError(f"`{name}` must hold an array of floats. Got none.")
    return params
