"""The one result type: what a run or a limit does to the risk over the steps."""

from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ._checks import known
from ._picture import axes_for
from ._repr import Shown
from ._types import PyTree


class Curve(Shown):
    """The excess risk against the step, of a run or of a limit.

    **Fields:**

    - `step`: shape `(..., s)`, in SGD steps, the first of a simulation being 0.
    - `risk`: shape `(..., s)`, the excess risk, in the unit of the problem's loss: the
        label's squared unit for least squares. Infinite from where a run has diverged.
    - `std`: shape `(..., s)`, the standard deviation of the risk of one run about
        `risk`, where `solve` was asked for it; None otherwise.
    - `params`: the parameters at the last step, in the problem's own coordinates; None
        where there are none, as of a limit of the risk alone.
    - `observed`: what `observe` returned at each recorded step, along a leading axis,
        and of [`jaxclip.EdgeFlow`][] the oscillation; None where nothing was observed.
    - `path`: the parameters at each reported step, along a leading axis, of a limit
        that follows them; None otherwise.
    - `reduced`: what is followed in place of parameters, at the last step: by
        [`jaxclip.RiskODE`][] the [`jaxclip.problem.Modes`][] of the risk, by
        [`jaxclip.Lumped`][] norms; None otherwise.

    Leading axes are those of a `vmap`: one for each setting or key.
    """

    step: Real[Array, "*batch s"]
    risk: Float[Array, "*batch s"]
    params: PyTree[Any] = None
    observed: PyTree[Any] = None
    path: PyTree[Any] = None
    reduced: PyTree[Any] = None
    std: Float[Array, "*batch s"] | None = None

    def to_xarray(self) -> Any:
        """The curve as an `xarray.Dataset`: `risk` over `step`, and leading axes
        `batch_0`, `batch_1` ... where the curve has them; beside it the standard
        deviation `std`, what was observed, and the path of the parameters. Needs the
        extra `cli`."""
        import xarray as xr

        batch = [f"batch_{i}" for i in range(self.risk.ndim - 1)]
        dims = [*batch, "step"]
        steps = self._shared_steps()
        risk = xr.DataArray(np.asarray(self.risk), dims=dims, name="risk")
        risk.attrs["long_name"] = "excess risk"
        data = {"risk": risk}
        if self.std is not None:
            data["std"] = xr.DataArray(np.asarray(self.std), dims=dims)
            data["std"].attrs["long_name"] = "standard deviation of the risk of a run"
        recorded = [("observed", self.observed), ("path", self.path)]
        for name, leaf in _named(recorded):
            extra = [f"{name}_{i}" for i in range(leaf.ndim - len(dims))]
            data[name] = xr.DataArray(np.asarray(leaf), dims=[*dims, *extra])
        dataset = xr.Dataset(data, coords={"step": steps})
        dataset["step"].attrs["long_name"] = "SGD step"
        return dataset

    def plot(self, ax: Any = None, *, band: float = 0.8, **style: Any) -> Any:
        """Draws the risk against the step on logarithmic axes. Needs the extra `cli`.

        A batch of curves is drawn as its mean and the band that holds the fraction
        `band` of the runs at each step; one curve that has a `std`, with the band that
        would hold it of normal ones.

        **Arguments:**

        - `ax`: the matplotlib axes to draw on; a new figure's by default.
        - `band`: the fraction of the runs in the band.
        - `style`: handed to matplotlib's `plot`, such as `label` and `color`.

        **Returns:**

        The axes.

        **Raises:**

        A `ValueError` where the curves of a batch have steps of their own; an
        `ImportError` without matplotlib.
        """
        if not 0 < band < 1:
            raise ValueError(
                f"`band` must be a fraction, between 0 and 1, of the runs. Got {band}."
            )
        known(curve=self)
        step = self._shared_steps()
        risk = np.asarray(self.risk)
        risk = risk.reshape(-1, risk.shape[-1])
        ax = axes_for(ax)
        (line,) = ax.plot(step, risk.mean(axis=0), **style)
        if len(risk) > 1:
            tail = (1 - band) / 2
            # The nearest run, since between a finite and an infinite risk is no number.
            ends = [tail, 1 - tail]
            low, high = np.quantile(risk, ends, axis=0, method="nearest")
            ax.fill_between(step, low, high, color=line.get_color(), alpha=0.2, lw=0)
        elif self.std is not None:
            half = NormalDist().inv_cdf((1 + band) / 2) * np.asarray(self.std).ravel()
            # Where there is no standard deviation there is no band.
            some = np.isfinite(half) & np.isfinite(risk[0])
            low, high = (np.where(some, risk[0] + x, 0.0) for x in (-half, half))
            look = dict(color=line.get_color(), alpha=0.2, lw=0)
            ax.fill_between(step, low, high, where=some, **look)
        ax.set(xlabel="SGD step", ylabel="excess risk", xscale="symlog", yscale="log")
        return ax

    def _shared_steps(self) -> np.ndarray:
        steps = np.asarray(self.step)
        steps = steps.reshape(-1, steps.shape[-1])
        if not np.all(steps == steps[0]):
            raise ValueError("`step` must be the same for all curves of a batch.")
        return steps[0]


def _named(trees: list[tuple[str, PyTree[Array]]]) -> Iterator[tuple[str, Array]]:
    """Each leaf, with the name of its tree and its place there."""
    for name, tree in trees:
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            yield name + jax.tree_util.keystr(path), leaf


def finite_or_infinite(risk: Float[Array, "..."]) -> Float[Array, "..."]:
    """The risk, infinite where it is no finite number: a diverged run has a risk above
    every other, even where overflowing sums of both signs say otherwise."""
    return jnp.where(jnp.isfinite(risk), risk, jnp.inf)
