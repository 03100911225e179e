"""The Fisher information of a residual: what no rule can beat."""

import equinox as eqx

from .._checks import positive
from .._types import RealScalar, RealScalarLike
from ..noise import AbstractNoise


def fisher_information(noise: AbstractNoise, risk: RealScalarLike) -> RealScalar:
    r"""The Fisher information of the residual's location: the ceiling of all rules.

    For every rule, $\mu^2 / \mathrm{second} \le I = E\,s(w)^2$ with the score
    $s = -p' / p$ of the residual's density, by Cauchy-Schwarz applied to
    $\mu = E[\psi s]$; the bound is met by $\psi \propto s$ alone. The ceiling of the
    clipping-comparison criterion is $I$ times the residual's variance. Derived here.

    **Arguments:**

    - `noise`: the label noise.
    - `risk`: the excess risk $R$, a positive number in the label's squared unit.

    **Returns:**

    $I$, a number, in one over the label's squared unit.
    """
    return information_at(noise, positive("risk", risk))


@eqx.filter_jit
def information_at(noise: AbstractNoise, risk: RealScalar) -> RealScalar:
    return noise.residual(2 * risk).information()
