"""Two quadratic wells, one of them spurious: when gradient descent leaves it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._checks import as_float, check, positive
from ..._types import Params, RealScalar, RealScalarLike
from ...noise import AbstractNoise
from ._base import AbstractLandscape


class TwoWells(AbstractLandscape):
    r"""A wide well at 0 and a narrow, higher one at $x_+ = D e_1$, in any dimension.

    $$f(x) = \min\{q_*(x), q_+(x)\}, \qquad q_*(x) = \frac{a}{2} \|x\|^2, \qquad
    q_+(x) = c + \frac{1}{2} \sum_j m_j (x - x_+)_j^2,$$

    or, smoothed, $f = -s \log(e^{-q_*/s} + e^{-q_+/s})$. With a large learning rate
    gradient descent leaves the spurious well for the global minimum 0 from almost every
    start; with a small one it stays there with positive probability (Mohtashami, Jaggi
    and Stich 2022, arXiv:2205.15142). A clip must leave it steps that are long enough.
    The properties are the exact limits of the wells without smoothing, derived here.

    **Arguments:**

    - `start`: shape `(d,)`, the parameters at step 0. It may be traced, so that a
        `vmap` may run over starts; its precision is that of the run.
    - `curvature`: $a$, of the well at 0, in the unit of $f$ over the squared one of the
        parameters.
    - `spurious_curvature`: $m > a$, of the other: a number, or shape `(d,)` for the
        curvatures along the axes.
    - `distance`: $D$, between the minima, in the unit of the parameters.
    - `height`: $c$, of the spurious minimum above the other, $0 < c < a D^2/2$, in the
        unit of $f$.
    - `smoothing`: $s$, in the unit of $f$; `None` for the lower one of the two itself.
    - `noise`: the law of each entry of the gradient's noise, or `None`.

    **Raises:**

    A `ValueError`, or an error at run time where they are traced, for numbers that do
    not give two wells.
    """

    start: Float[Array, " d"]
    curvature: Float[Array, ""]
    spurious_curvature: Float[Array, "..."]
    distance: Float[Array, ""]
    height: Float[Array, ""]
    smoothing: Float[Array, ""] | None
    noise: AbstractNoise | None

    def __init__(
        self,
        start: Any,
        *,
        curvature: RealScalarLike = 1.0,
        spurious_curvature: Any = 20.0,
        distance: RealScalarLike = 3.0,
        height: RealScalarLike = 3.0,
        smoothing: RealScalarLike | None = None,
        noise: AbstractNoise | None = None,
    ):
        self.start = as_float("start", start)
        self.curvature = positive("curvature", curvature)
        self.distance = positive("distance", distance)
        self.smoothing = None if smoothing is None else positive("smoothing", smoothing)
        self.noise = noise
        steep = positive("spurious_curvature", spurious_curvature)
        if self.start.ndim != 1 or steep.shape not in ((), self.start.shape):
            raise ValueError(
                "`start` must be a vector, and `spurious_curvature` a number or a "
                f"vector as long. Got shapes {self.start.shape} and {steep.shape}."
            )
        self.spurious_curvature = _above(
            steep,
            self.curvature,
            "`spurious_curvature` must be above `curvature`, so that the spurious "
            "well is the narrow one.",
        )
        top = self.curvature * self.distance**2 / 2
        self.height = -_above(
            -positive("height", height),
            -top,
            "`height` must be below `curvature * distance**2 / 2`, the wide well at "
            "the spurious minimum, or there is no second well.",
        )

    def loss(self, params: Params) -> RealScalar:
        wide, narrow = self._wells(params)
        if self.smoothing is None:
            return jnp.minimum(wide, narrow)
        s = self.smoothing.astype(params.dtype)
        return -s * jnp.logaddexp(-wide / s, -narrow / s)

    def slope(self, params: Params) -> Params:
        wide, narrow = self._wells(params)
        if self.smoothing is None:
            inside = (narrow < wide).astype(params.dtype)
        else:
            s = self.smoothing.astype(params.dtype)
            inside = jax.nn.sigmoid((wide - narrow) / s)
        a = self.curvature.astype(params.dtype)
        m = self.spurious_curvature.astype(params.dtype)
        away = params - self._spurious(params)
        return (1 - inside) * a * params + inside * m * away

    def risk(self, params: Params) -> RealScalar:
        return self.loss(params)

    @property
    def minima(self) -> Float[Array, "2 d"]:
        """The global minimum and the spurious one, of the wells without smoothing."""
        return jnp.stack([jnp.zeros_like(self.start), self._spurious(self.start)])

    @property
    def basin_centre(self) -> Float[Array, " d"]:
        r"""The centre $\frac{mD}{m-a} e_1$ of the ball in which the spurious well is
        the lower one, for one curvature $m$."""
        m, D = self._isotropic(), self.distance
        return self._along(self.start, m * D / (m - self.curvature))

    @property
    def basin_radius(self) -> RealScalar:
        r"""The ball's radius, $\sqrt{m^2 D^2 - (m - a)(m D^2 + 2c)} / (m - a)$."""
        m, a, D = self._isotropic(), self.curvature, self.distance
        inside = m**2 * D**2 - (m - a) * (m * D**2 + 2 * self.height)
        return jnp.sqrt(inside) / (m - a)

    @property
    def near_radius(self) -> RealScalar:
        """The distance $r$ from the spurious minimum to the nearest point of the
        ball's surface, the one towards 0."""
        m, a, D = self._isotropic(), self.curvature, self.distance
        return self.basin_radius - a * D / (m - a)

    @property
    def escape_lr(self) -> RealScalar:
        r"""The learning rate $2 / \max_j m_j$, above which almost every start leaves
        the spurious well, and below which starts close to its minimum stay."""
        return 2 / jnp.max(self.spurious_curvature)

    def escape_clip(self, lr: RealScalarLike) -> RealScalar:
        r"""The threshold $r / (\gamma - 1/m)$ of a hard clip, below which nothing that
        is in the ball around the spurious minimum leaves it.

        A step overshoots the minimum by at most $c\,(\gamma - 1/m)$. Thresholds of
        `certain_clip` and more let almost every start leave, those between some.

        **Arguments:**

        - `lr`: the learning rate $\gamma$, above $1/m$.
        """
        return self.near_radius / (jnp.asarray(lr) - 1 / self._isotropic())

    @property
    def certain_clip(self) -> RealScalar:
        """The threshold $m r$ of a hard clip, from which on it does not hinder a start
        from leaving, at learning rates above `escape_lr`."""
        return self._isotropic() * self.near_radius

    def _wells(self, params: Params) -> tuple[RealScalar, RealScalar]:
        """The two quadratics, in the precision of the parameters."""
        a, m, c = (
            x.astype(params.dtype)
            for x in (self.curvature, self.spurious_curvature, self.height)
        )
        away = params - self._spurious(params)
        return a / 2 * jnp.sum(params**2), c + jnp.sum(m * away**2) / 2

    def _spurious(self, like: Float[Array, " d"]) -> Float[Array, " d"]:
        return self._along(like, self.distance)

    def _along(
        self, like: Float[Array, " d"], length: RealScalar
    ) -> Float[Array, " d"]:
        """The point at this length on the line through the minima."""
        first = jnp.arange(like.size) == 0
        return jnp.where(first, length.astype(like.dtype), 0)

    def _isotropic(self) -> RealScalar:
        if self.spurious_curvature.ndim:
            raise ValueError(
                "The basin is a ball only for one `spurious_curvature`. Got one for "
                "each axis; of them, only `escape_lr` is known in closed form."
            )
        return self.spurious_curvature


def _above(value: Array, bound: Array, message: str) -> Array:
    """`value`, or an error where an entry of it is not above the bound."""
    # One array of both, since either may be traced.
    both = jnp.stack(jnp.broadcast_arrays(value, bound.astype(value.dtype)))
    return check(both, lambda x: ~(x[0] > x[1]), message)[0]
