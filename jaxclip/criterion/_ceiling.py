"""The ceiling of all clipping rules."""

from typing import Any

import equinox as eqx

from .._checks import count, reporting_steps
from .._curve import Curve
from .._schedule import check_rate
from .._types import RealScalar, RealScalarLike, Schedule, Step
from ..limit import Request, RiskODE, few_modes
from ..noise import AbstractNoise
from ..problem import LinearModel, need_squared_loss
from ._fisher import information_at
from ._table import Tabulated, risk_range, tabulate_smooth


def ceiling(
    problem: LinearModel,
    lr: RealScalarLike | Schedule,
    *,
    steps: Any,
    batch_size: int = 1,
) -> Curve:
    r"""The risk of the best of all rules with the descent of unclipped SGD.

    The rule is the score of the residual's law at every step, its rate compensated; no
    rule with the descent rate $\gamma_k$ has a smaller error in any eigenspace at any
    time (derived here). On isotropic features with the best $\gamma_k$ it is the
    Cramér-Rao limit of one pass over the samples, $dR/dk = -2 R^2 I / d$.

    **Arguments:**

    - `problem`: what SGD runs on; with the squared loss.
    - `lr`: the rate of descent $\gamma_k$, per step, a number or a function of the
        step: what unclipped SGD has as its learning rate, and a rule as its own times
        $\mu$.
    - `steps`: shape `(s,)`, the steps at which to report: not negative and increasing.
    - `batch_size`: samples a step, each with a rule of its own: no clip of their mean
        leaves less noise.

    **Returns:**

    A [`jaxclip.Curve`][] of the excess risk, in the label's squared unit.

    **Raises:**

    A `ValueError` where an argument is misused.
    """
    problem = need_squared_loss("ceiling", problem)
    steps = reporting_steps(steps)
    lr = check_rate(lr, steps)
    size = count("batch_size", batch_size)
    # Each value is a quadrature over the whole law, and the solver asks for thousands.
    information = tabulate_smooth(_Information(problem.noise), *risk_range(problem))
    # The same equation as of any rule, with the coefficients of the score.
    return RiskODE().integrate(
        few_modes(problem),
        _Best(lr, information, size),
        Request(steps),
        settings=lr,
        scale=problem.noise.variance,
    )


class _Information(eqx.Module):
    """The Fisher information, a function of the risk."""

    noise: AbstractNoise

    def __call__(self, risk: RealScalar) -> RealScalar:
        # Unchecked: the range of the table is positive by its making.
        return information_at(self.noise, risk)


class _Best(eqx.Module):
    """The coefficients of a run with the best of all rules."""

    lr: Schedule
    information: Tabulated
    batch_size: int = eqx.field(static=True)

    def __call__(self, step: Step, risk: RealScalar) -> tuple[RealScalar, RealScalar]:
        # With psi the score s both mu and second are E s^2 = I. At the rate lr / I the
        # descent is lr, and the squared noise (lr / I)^2 I.
        rate = self.lr(step)
        return rate, rate**2 / self.information(risk) / self.batch_size
