r"""Which way noise in labels pushes along the zero-loss set, with and without a clip.

A step of SGD sees $b$ of $n$ examples. The model has $m$ outputs $f_i$ with the
Jacobian $J$. A clip acts on a residual as $\psi_i$, and on the set a residual is its
noise $\eta_i$ alone: $\rho_i = E\,\psi_i'(\eta_i)$ and $s_i^2 = E\,\psi_i(\eta_i)^2$.
The velocity $v$ of $dW/dk = \gamma^2 P v(W)$ depends on what is clipped:

| what is clipped | the velocity | function |
|---|---|---|
| nothing; all residuals, at one threshold | (1), $s = s_i$ for any $i$ | `_alike` |
| all residuals, at thresholds that differ | (2) | `_unequal` |
| the gradient, of one residual a step | (2), $\psi_i$ see below | `_single` |
| the gradient, of all residuals a step | (3) | `_whole` |

$$(1)\quad -\frac{s^2}{4 n b} \nabla \sum_i |\nabla f_i|^2, \qquad
(2)\quad -\frac1n \sum_i \rho_i \nabla^2 f_i V \nabla f_i, \qquad
(3)\quad -\frac{1}{4 n^2} \nabla \mathrm{tr}\, S J J^T,$$

with $V$ the covariance of the fluctuations about the set, over the rate, and $S$ the
second moment of the noise that the clip leaves; in (3) $S$ is not differentiated. A
clip of the gradient of one residual is one of that residual, $\psi_i$, at the threshold
over $|\nabla f_i|$. Without a clip (1) is in Section 2 of arXiv:2404.12293; all else is
derived here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...._types import Params, Step
from ....clip import AbstractClip, Identity, Moments
from ....noise import AbstractNoise
from ._clipped_covariance import clipped_covariance
from ._fit import Fit
from ._noise_moments import noise_moments, per_residual


class LabelStep(NamedTuple):
    """A step of SGD under label noise: all that its drift depends on but the point.

    - `fit`: the model and its data, with the clip of the residuals.
    - `noise`: the law of a label's noise.
    - `seen`: $b$, how many examples the step sees.
    - `clip`: the rule of the whole gradient.
    - `step`: where its thresholds are taken.
    """

    fit: Fit
    noise: AbstractNoise
    seen: int
    clip: AbstractClip
    step: Step

    @property
    def sees_one(self) -> bool:
        """Whether the step sees one residual only."""
        return self.seen == 1 and self.fit.ys.size == self.fit.size


def label_drift(of: LabelStep, params: Params) -> Params:
    r"""The velocity $v$ of $dW/dk = \gamma^2 P v(W)$ at a point of the zero-loss set.

    **Arguments:**

    - `of`: the step of SGD. Not both of its clips may act.
    - `params`: the point.

    **Returns:**

    A velocity, of the structure of `params`.
    """
    # The table above, from what is clipped to the formula.
    if not isinstance(of.clip, Identity):
        formula = _single if of.sees_one else _whole
    elif all(jnp.ndim(leaf) == 0 for leaf in jax.tree.leaves(of.fit.residual_clip)):
        formula = _alike
    else:
        formula = _unequal
    return formula(of, params)


def _alike(of: LabelStep, params: Params) -> Params:
    r"""$-\tfrac{c}{4} s^2 \nabla \mathrm{tr} H$ with $c = 1/b$, where on the set
    $\mathrm{tr} H = \tfrac1n \sum_i |\nabla f_i|^2$: where all residuals are clipped
    alike, $\rho$ cancels."""
    fit = of.fit
    second = noise_moments(fit.residual_clip, of.noise).second
    scale = -second / (4 * of.seen * fit.size)

    # One example at a time: the memory is that of a few sets of parameters.
    def add(total, x):
        def energy(w):
            slopes = jax.tree.leaves(jax.jacrev(lambda w: fit.model(w, x))(w))
            return scale * sum(jnp.sum(leaf**2) for leaf in slopes)

        return jax.tree.map(jnp.add, total, jax.grad(energy)(params)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), fit.xs)[0]


def _unequal(of: LabelStep, params: Params) -> Params:
    """Each residual is clipped by itself, whatever the others are."""
    moments = jax.vmap(lambda clip: noise_moments(clip, of.noise))(per_residual(of.fit))
    return _fluctuating(of, params, moments)


def _single(of: LabelStep, params: Params) -> Params:
    """Where a step sees one residual, a clip of the gradient is one of the residual, at
    the threshold over the norm of its slope."""
    norms = jnp.linalg.norm(of.fit.jacobian(params), axis=1)
    moments = jax.vmap(lambda norm: noise_moments(of.clip, of.noise, norm, of.step))(
        norms
    )
    return _fluctuating(of, params, moments)


def _whole(of: LabelStep, params: Params) -> Params:
    r"""$-\tfrac{1}{4n^2} \nabla \mathrm{tr}\, S J J^T$ with
    $S = E\,\eta \eta^T f(|J^T \eta| / n)^2$ as it is at the point.

    For normal noise $S$ and $E\,\psi'$ are functions of the tangent kernel, so that
    $E\,\psi'$ cancels as it does where all residuals are clipped alike.
    """
    fit, std = of.fit, jnp.sqrt(of.noise.variance)
    jacobian, pull = jax.vjp(fit.jacobian, params)
    gram = jacobian @ jacobian.T / fit.size**2
    second = clipped_covariance(gram, of.clip, of.step, std, power=2)
    # The derivative of the trace is twice that of one of the two Jacobians.
    return pull(-(second @ jacobian) / (2 * fit.size**2))[0]


def _fluctuating(of: LabelStep, params: Params, moments: Moments) -> Params:
    r"""$-\tfrac1n \sum_i \rho_i \nabla^2 f_i V \nabla f_i$, with $\rho_i$ and $s_i^2$
    the `mu` and `second` of each residual.

    Gradient descent fluctuates about the set with the covariance $\gamma V$ that
    $A V + V A = \Sigma$ balances: it is pulled back by $A = J^T R J / n$ and driven by
    $\Sigma = J^T S J / (n b)$, where $R$ and $S$ hold $\rho_i$ and $s_i^2$. With
    $V = J^T Z J$ that is $R K Z + Z K R = S / b$.
    """
    fit, rho = of.fit, moments.mu
    jacobian = fit.jacobian(params)
    z = _lyapunov(jacobian @ jacobian.T, rho, moments.second / of.seen)

    # Half the gradient of sum_i rho_i grad f_i' V grad f_i, where V is held: that is
    # sum_i rho_i Hess f_i V grad f_i.
    def energy(w):
        inside = fit.jacobian(w) @ jacobian.T
        return -jnp.sum(rho * jnp.sum((inside @ z) * inside, axis=1)) / (2 * fit.size)

    return jax.grad(energy)(params)


def _lyapunov(
    kernel: Float[Array, "m m"], rho: Float[Array, " m"], source: Float[Array, " m"]
) -> Float[Array, "m m"]:
    r"""The solution $Z$ of $R K Z + Z K R = S$, with $R$ and $S$ diagonal.

    $Y = R^{-1/2} Z R^{-1/2}$ solves $B Y + Y B = R^{-1} S$ with the symmetric
    $B = R^{1/2} K R^{1/2}$, in whose eigenvectors each entry is a division.
    """
    root = jnp.sqrt(rho)
    eigenvalues, q = jnp.linalg.eigh(root[:, None] * kernel * root[None])
    driven = q.T @ ((source / rho)[:, None] * q)
    inner = driven / (eigenvalues[:, None] + eigenvalues[None])
    return root[:, None] * (q @ inner @ q.T) * root[None]
