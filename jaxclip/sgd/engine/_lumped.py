r"""SGD on Gaussian features with one or two numbers for each eigenvalue.

Let the error have norm $r_j$ in the eigenspace of $\lambda_j$, of dimension $d_j$, and
rotate the eigenspace so that the error is an axis; the features do not notice. Of a
batch of $B$ samples the step then needs the features along that axis,
$\sqrt{\lambda_j} u_j$ with a standard normal $u_j \in R^B$, and of the other
$n_j = d_j - 1$ components, $\sqrt{\lambda_j} Y_j$ with $B$ rows in $Y_j$, only the Gram
matrix $Y_j Y_j^T = L_j L_j^T$. With predictions
$p = \sum_j \sqrt{\lambda_j} r_j u_j$, the Gram matrix
$G = \sum_j \lambda_j (u_j u_j^T + L_j L_j^T)$ of whole features, and the coefficients
$\alpha(p, y, G) \in R^B$ of the clipped step, the same as in the blocked engine,

$$r_j^2 \leftarrow (r_j - \sqrt{\lambda_j}\, u_j^T \alpha)^2
+ \lambda_j \|L_j^T \alpha\|^2.$$

$L_j$ is the triangular factor of $Y_j$ (Bartlett 1933): below the diagonal standard
normal numbers, on it the roots of chi-squared ones with $n_j, n_j - 1, \dots$ degrees
of freedom. Columns from $n_j$ on are zero, so that a batch may be larger than an
eigenspace; for one sample it is one chi-squared number. Noise of standard deviation
$\sigma$ on the step adds $\sigma \xi$ to each component of $\sqrt{\lambda_j} L_j^T
\alpha$, as $Y_j = L_j Q_j$ with orthonormal rows in $Q_j$ that the noise does not
notice, and $\sigma^2 \chi^2_{n_j - B}$ for what is orthogonal to them.

Labels that depend on the direction of $x^*$ keep its axis fixed as a second one, and
$n_j = d_j - 2$. All of it is exact in law in every dimension. Derived here.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from ..._curve import Curve
from ..._numerics import exact_dot, exact_einsum
from ..._random import chi_squared
from ..._types import Key, RealScalar, Schedule
from ...clip import AbstractClip
from ...problem import AbstractGaussianLinear, AbstractProblem
from ...transform import AbstractScope, PerExample
from .._loop import Run, record
from ._axes import Axes, Draw, Motion
from ._base import AbstractEngine, need_whole_gradients
from ._tiles import clipped


class Lumped(AbstractEngine):
    r"""A few numbers for each eigenvalue, for linear models with Gaussian features.

    Features are invariant under a rotation of an eigenspace, so the risk needs only the
    norm $r_j$ of the error in each, and a step only the features' component along that
    error and the length of the rest. The risk has exactly the law that it has under
    [`jaxclip.Direct`][], in every dimension and not just in a high one, at a cost that
    does not depend on the multiplicities: an isotropic problem in $10^9$ dimensions
    takes as long as one in 10.

    It does not see the same data as the other engines for the same key, so compare it
    with them in law, and with itself in pairs.

    `Curve.reduced` has the norms $r_j$, shape `(m,)`, that of the eigenvalues. For
    [`jaxclip.Logistic`][] it has shape `(2 m,)`: the components along $x^*$, then
    the norms of what is orthogonal to it.
    """

    def compute(
        self, problem: AbstractProblem, clip: AbstractClip, lr: Schedule, run: Run
    ) -> Curve:
        if not isinstance(problem, AbstractGaussianLinear):
            raise ValueError(
                "`Lumped()` needs Gaussian features, such as those of `LinearModel`. "
                f"Got a {type(problem).__name__}; use `Blocked()` or `Direct()`."
            )
        known, direct = ("batch_size", "scope"), "use `engine=Direct()`"
        run.update.need_only("Lumped()", known, direct)
        need_whole_gradients("Lumped()", run.scope)
        if run.observe is not None:
            raise ValueError(
                "`observe` is a function of all parameters, and `Lumped()` has only "
                "their norm in each eigenspace. Leave it out, or use `Blocked()`."
            )
        return run_lumped(problem, clip, lr, run)


# Numbers that are drawn at once at most: about what a core's cache holds.
_AT_ONCE = 2**20


class _Step(eqx.Module):
    """One step of clipped SGD on the axes.

    - `axes`: what the error is described by.
    - `clip`, `scope`: how the gradient of a batch is clipped.
    """

    axes: Axes
    clip: AbstractClip
    scope: AbstractScope

    def motion(
        self, r: Float[Array, " n"], draw: Draw, step: Int[Array, ""], rate: RealScalar
    ) -> Motion:
        """What a step subtracts from an error with the components `r`."""
        A, L = draw.features, draw.triangle
        # The formulas at the top of the file: p, then G, alpha, and the step in the
        # axes and beside them. The scale sqrt(lambda_j) is in A and L.
        prediction = exact_dot(A, r)
        gram = exact_dot(A, A.T)
        gram = gram + jnp.sum(exact_einsum("mbi,mci->mbc", L, L), axis=0)
        slope = jax.vmap(self.axes.problem.slope)(prediction, draw.target)
        alpha = rate * clipped(self.clip, self.scope, slope, gram, step)
        along = exact_dot(alpha, A)
        beside = exact_einsum("mbi,b->mi", L, alpha)
        return self._with_noise(along, beside, rate, draw.key)

    def _with_noise(
        self,
        along: Float[Array, " n"],
        beside: Float[Array, "m b"],
        rate: RealScalar,
        key: Key,
    ) -> Motion:
        """The motion, with the noise of the scope where it has any."""
        axes, scope = self.axes, self.scope
        if not isinstance(scope, PerExample) or scope.noise_std is None:
            return Motion(along, jnp.sum(beside**2, axis=1))
        scale = rate * scope.noise_std
        axes_key, rows_key, rest_key = jr.split(key, 3)
        noise = jnp.where(axes.exists, jr.normal(axes_key, along.shape), 0.0)
        # Of the directions that the samples span, no more than there are dimensions.
        rows = jnp.arange(beside.shape[1])
        within = rows[None, :] < axes.hidden[:, None]
        drawn = jnp.where(within, jr.normal(rows_key, beside.shape), 0.0)
        # In all other directions there is noise alone, of which the length counts.
        rest = chi_squared(rest_key, axes.hidden - len(rows))
        square = jnp.sum((beside + scale * drawn) ** 2, axis=1) + scale**2 * rest
        return Motion(along + scale * noise, square)


def run_lumped(
    problem: AbstractGaussianLinear,
    clip: AbstractClip,
    lr: Schedule,
    run: Run,
) -> Curve:
    """Clipped SGD on the axes that matter of each eigenspace."""
    axes, batch_size = Axes.of(problem), run.batch_size
    one = _Step(axes, clip, run.scope)
    data_key, rest_key = jr.split(run.key)
    stream = axes.problem.stream(data_key)
    # Steps drawn at once: many spare time, and too many do not fit into the cache.
    size = _AT_ONCE // (axes.hidden.size * batch_size * (batch_size + 1))
    size = max(1, min(size, 64, run.every))

    def step(state, xs):
        (r, lost), (k, rate, draw) = state, xs
        motion = one.motion(r, draw, k, rate)
        return _add(r, lost, axes.change(r, motion)), None

    # Without the checkpoint a reverse pass would keep the draws of every step.
    @jax.checkpoint
    def chunk(state, first, end):
        k = first + jnp.arange(size)
        # A step beyond the end has no rate, and moves nothing.
        rates = jnp.where(k < end, jax.vmap(lambda k: jnp.asarray(lr(k)))(k), 0.0)
        draws = jax.vmap(lambda k: axes.draw(stream, rest_key, k, batch_size))(k)
        return jax.lax.scan(step, state, (k, rates, draws))[0]

    def advance(state, first):
        def body(state, i):
            return chunk(state, first + i * size, first + run.every), None

        return jax.lax.scan(body, state, jnp.arange(-(-run.every // size)))[0]

    r = axes.problem.init()
    start = (r, jnp.zeros_like(r))
    curve = record(axes.problem, run, advance, start, params_of=lambda state: state[0])
    return Curve(curve.step, curve.risk, reduced=curve.params)


def _add(
    params: Float[Array, " n"], lost: Float[Array, " n"], change: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The sum, with what rounding took from it kept for the next (Kahan 1965): in 10^9
    dimensions single steps are below the rounding of the norms in float32."""
    change = change + lost
    total = params + change
    return total, change - (total - params)
