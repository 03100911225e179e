"""Checks at the door: what came, what is wanted, what to do.

A concrete value fails at once with a `ValueError`; a traced one fails when the
compiled program runs, through `equinox.error_if`. That is a callback to the host, which
no training step may hold and no exported program can: the numbers of rules, policies
and scopes, which may be traced within a step, become NaN there instead, and what is
called from outside refuses a NaN. With the environment variable `EQX_ON_ERROR=nan`
that is so everywhere.
"""

import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def check(
    value: Array, is_bad: Callable[[Any], Any], message: str, *, in_step: bool = False
) -> Array:
    """Returns `value`, or fails with `message` where `is_bad(value)` has a true entry.

    The result must be used: under `jit` an unused check is removed as dead code.

    **Arguments:**

    - `in_step`: whether it is a number of a rule, which may be traced within a training
        step: where it is bad it then becomes NaN, without a callback to the host.
    """
    if is_traced(value) and in_step:
        return jnp.where(is_bad(value), jnp.nan, value)
    if is_traced(value):
        return eqx.error_if(value, jnp.any(is_bad(value)), message)
    # In numpy: under `jit` even a comparison of two constants would be traced.
    if np.any(is_bad(np.asarray(value))):
        raise ValueError(f"{message} Got {_short(value)}.")
    return value


def nonnegative(name: str, value: Any, *, in_step: bool = False) -> Array:
    """`value` as an array of floats, none of them negative or NaN (inf is allowed)."""
    # Written as a negation so that NaN, which compares false, is caught too.
    return check(
        as_float(name, value),
        lambda x: ~(x >= 0),
        f"`{name}` must be non-negative and not NaN.",
        in_step=in_step,
    )


def positive(name: str, value: Any, *, in_step: bool = False) -> Array:
    """`value` as an array of floats, all of them positive and finite."""
    return check(
        as_float(name, value),
        lambda x: ~((x > 0) & (x < np.inf)),
        f"`{name}` must be positive and finite.",
        in_step=in_step,
    )


def fraction(name: str, value: Any, *, in_step: bool = False) -> Array:
    """`value` as an array of floats, all of them from 0 to 1."""
    return check(
        as_float(name, value),
        lambda x: ~((x >= 0) & (x <= 1)),
        f"`{name}` must lie between 0 and 1.",
        in_step=in_step,
    )


def is_traced(value: Any) -> bool:
    """Whether `value` stands for numbers that are not known yet."""
    return isinstance(value, jax.core.Tracer)


def known(**arguments: Any) -> None:
    """Refuses arguments that are traced, where numpy works with their numbers."""
    for name, value in arguments.items():
        if any(map(is_traced, jax.tree.leaves(value))):
            raise ValueError(
                f"`{name}` must be known before tracing: numpy works with its numbers. "
                f"Do this outside of `jit`, `vmap` and `grad`. Got {value!r}."
            )


def as_float(name: str, value: Any) -> Array:
    """`value` as an array of floats; what is no real number is refused by name."""
    if any(is_traced(leaf) for leaf in jax.tree.leaves(value)):
        return _as_float(name, value)
    # Under `jit` a number would otherwise be traced, and be checked too late.
    with jax.ensure_compile_time_eval():
        return _as_float(name, value)


def _as_float(name: str, value: Any) -> Array:
    if isinstance(value, int) and not isinstance(value, bool):
        # So that 3 is of the same type as 3.0, and compiles nothing anew.
        value = float(value)
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{name}` must be a number or an array of numbers. Got {value!r}."
        ) from error
    if jnp.issubdtype(value.dtype, jnp.floating):
        return value
    if jnp.issubdtype(value.dtype, jnp.integer):
        return value.astype(jnp.result_type(float))
    raise ValueError(f"`{name}` must be real. Got an array of {value.dtype}.")


def count(name: str, value: Any, *, least: int = 1) -> int:
    """`value` as a Python integer that is at least `least`."""
    try:
        whole = operator.index(value)
    except TypeError:
        # Of a traced number, too, whose error is a `TypeError`.
        whole = None
    if whole is None or isinstance(value, bool):
        raise ValueError(
            f"`{name}` must be a Python integer, known before tracing. "
            f"Got {value!r} of type {type(value).__name__}."
        )
    if whole < least:
        raise ValueError(f"`{name}` must be at least {least}. Got {whole}.")
    return whole


def leading_length(name: str, tree: Any, of: str, *, least: int = 1) -> int:
    """The length of the leading axis that all leaves of a pytree must share.

    **Arguments:**

    - `name`: what the pytree is called in the error.
    - `tree`: a pytree of arrays, or of what has a shape.
    - `of`: what the axis counts, in the plural, such as `"examples"`.
    - `least`: its smallest length.
    """
    axes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(axes) != 1 or axes == {()}:
        raise ValueError(
            f"{name} must have the same leading axis of {of} on every leaf. "
            f"Got leading axes {sorted(axes)}."
        )
    ((length,),) = axes
    if length < least:
        raise ValueError(f"{name} must hold at least {least} {of}. Got {length}.")
    return length


def returns_a_number(call: str, function: Callable[..., Any], *args: Any) -> None:
    """Refuses a function, without running it, that does not return one real number.

    **Arguments:**

    - `call`: how the call is written in the error, such as `"loss(params, example)"`.
    - `function`, `args`: the function and what it is given.
    """
    value = eqx.filter_eval_shape(function, *args)
    real = getattr(value, "shape", None) == () and jnp.issubdtype(
        value.dtype, jnp.floating
    )
    if not real:
        raise ValueError(
            f"`{call}` must return one number, a float. Got {value}; sum over whatever "
            "it returns."
        )


def reporting_steps(steps: Any) -> Float[Array, " s"]:
    """The steps at which a limit reports, as a vector of floats that never falls."""
    steps = as_float("steps", steps)
    if steps.ndim != 1 or steps.size == 0:
        raise ValueError(
            "`steps` must be a vector of the steps at which to report, such as "
            f"`jnp.linspace(0, 1000, 11)`. Got shape {steps.shape}."
        )
    steps = check(
        steps,
        lambda k: ~((k >= 0) & (k < np.inf)),
        "`steps` must be non-negative and finite.",
    )
    return check(
        steps, lambda k: ~(k[1:] >= k[:-1]), "`steps` must be in increasing order."
    )


def _short(value: Array) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."
