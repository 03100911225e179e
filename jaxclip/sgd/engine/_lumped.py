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
from jaxtyping import Array, Bool, Float, Int

from ..._curve import Curve
from ..._numerics import exact_dot, exact_einsum, safe_sqrt
from ..._random import chi_squared
from ..._types import Key, PyTree, RealScalar, Schedule
from ...clip import AbstractClip
from ...problem import AbstractGaussianLinear, AbstractProblem
from ...transform import AbstractScope, PerExample
from .._loop import Run, record
from ._base import AbstractEngine
from ._blocked import clipped


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
        if run.observe is not None:
            raise ValueError(
                "`observe` is a function of all parameters, and `Lumped()` has only "
                "their norm in each eigenspace. Leave it out, or use `Blocked()`."
            )
        return run_lumped(problem, clip, lr, run)


# Numbers.
_AT_ONCE = 2**20


class _Axes(eqx.Module):
    """The axes of each eigenspace that a run depends on, and what is beside them."""

    problem: AbstractGaussianLinear
    eigenvalues: Float[Array, " m"]
    # How many dimensions of each eigenspace are no axis, and which axes there are: in
    # one dimension a fixed axis leaves none for the rest of the error.
    hidden: Int[Array, " m"]
    exists: Bool[Array, " n"]
    # How many axes, the first ones, do not turn with the error.
    fixed: int = eqx.field(static=True)

    @classmethod
    def of(cls, problem: AbstractGaussianLinear) -> "_Axes":
        lumped, spectrum = problem.lumped(), problem.spectrum
        blocks = spectrum.eigenvalues.size
        each = lumped.spectrum.dim // blocks
        fixed = lumped.spectrum.dim - blocks
        exists = jnp.concatenate([jnp.ones(fixed, bool), spectrum.multiplicity >= each])
        hidden = jnp.maximum(spectrum.multiplicity - each, 0)
        return cls(lumped, spectrum.eigenvalues, hidden, exists, fixed)

    def draw(
        self, stream: PyTree[Array], key: Key, step: Int[Array, ""], rows: int
    ) -> tuple[Key, Array, Array, Array]:
        """What one step needs: a key for its noise, the features of its samples along
        the axes, their targets, and a triangle for the rest of the features."""
        index = step * rows + jnp.arange(rows)
        A, y = jax.vmap(self.problem.example, (None, 0))(stream, index)
        triangle_key, noise_key = jr.split(jr.fold_in(key, step))
        root = jnp.sqrt(self.eigenvalues)[:, None, None]
        L = root * bartlett(triangle_key, self.hidden, rows)
        return noise_key, jnp.where(self.exists[None, :], A, 0.0), y, L


def run_lumped(
    problem: AbstractGaussianLinear,
    clip: AbstractClip,
    lr: Schedule,
    run: Run,
) -> Curve:
    """Clipped SGD on the axes that matter of each eigenspace."""
    axes, batch_size, scope = _Axes.of(problem), run.batch_size, run.scope
    data_key, rest_key = jr.split(run.key)
    stream = axes.problem.stream(data_key)
    # Steps drawn at once: many spare time, and too many do not fit into the cache.
    size = _AT_ONCE // (axes.hidden.size * batch_size * (batch_size + 1))
    size = max(1, min(size, 64, run.every))

    def step(state, xs):
        params, lost = state
        k, rate, noise_key, A, y, L = xs
        gram = exact_dot(A, A.T)
        gram = gram + jnp.sum(exact_einsum("mbi,mci->mbc", L, L), axis=0)
        prediction = exact_dot(A, params)
        slope = jax.vmap(axes.problem.slope)(prediction, y)
        alpha = rate * clipped(clip, scope, slope, gram, k)
        along = exact_dot(alpha, A)
        beside = exact_einsum("mbi,b->mi", L, alpha)
        along, square = _with_noise(scope, rate, noise_key, axes, along, beside)
        return _add(params, lost, _change(axes.fixed, params, along, square)), None

    # Without the checkpoint a reverse pass would keep the draws of every step.
    @jax.checkpoint
    def chunk(state, first, end):
        k = first + jnp.arange(size)
        # A step beyond the end has no rate, and moves nothing.
        rates = jnp.where(k < end, jax.vmap(lambda k: jnp.asarray(lr(k)))(k), 0.0)
        draws = jax.vmap(lambda k: axes.draw(stream, rest_key, k, batch_size))(k)
        return jax.lax.scan(step, state, (k, rates, *draws))[0]

    def advance(state, first):
        def body(state, i):
            return chunk(state, first + i * size, first + run.every), None

        return jax.lax.scan(body, state, jnp.arange(-(-run.every // size)))[0]

    params = axes.problem.init()
    curve = record(
        axes.problem,
        run,
        advance,
        (params, jnp.zeros_like(params)),
        params_of=lambda state: state[0],
    )
    return Curve(curve.step, curve.risk, reduced=curve.params)


def bartlett(
    key: Key, dims: Int[Array, " m"], rows: int
) -> Float[Array, "m {rows} {rows}"]:
    """Triangular L with L L' distributed like X X', X a matrix of standard normal
    numbers with `rows` rows and `dims[j]` columns, of which there may be fewer."""
    normal_key, square_key = jr.split(key)
    left = dims[:, None] - jnp.arange(rows)[None, :]
    diagonal = jnp.sqrt(chi_squared(square_key, left))
    L = diagonal[:, :, None] * jnp.eye(rows)[None]
    if rows == 1:
        return L
    below = jnp.tril(jr.normal(normal_key, (dims.size, rows, rows)), -1)
    return L + jnp.where((left > 0)[:, None, :], below, 0.0)


def _with_noise(
    scope: AbstractScope,
    rate: RealScalar,
    key: Key,
    axes: _Axes,
    along: Float[Array, " n"],
    beside: Float[Array, "m b"],
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """The step along the axes, and its squared length beside them, with the scope's
    noise, if it has any."""
    square = jnp.sum(beside**2, axis=1)
    if not isinstance(scope, PerExample) or scope.noise_std is None:
        return along, square
    scale = rate * scope.noise_std
    axes_key, rows_key, rest_key = jr.split(key, 3)
    noise = jnp.where(axes.exists, jr.normal(axes_key, along.shape), 0.0)
    rows = jnp.arange(beside.shape[1])
    within = rows[None, :] < axes.hidden[:, None]
    beside = beside + scale * jnp.where(within, jr.normal(rows_key, beside.shape), 0.0)
    rest = chi_squared(rest_key, axes.hidden - len(rows))
    return along + scale * noise, jnp.sum(beside**2, axis=1) + scale**2 * rest


def _change(
    fixed: int,
    params: Float[Array, " n"],
    along: Float[Array, " n"],
    square: Float[Array, " m"],
) -> Float[Array, " n"]:
    r"""What a step adds: $-s$ on a fixed axis, $\sqrt{(r - s)^2 + q} - r$ to a norm,
    written so that rounding leaves more of it than of the norm."""
    r, s = params[fixed:], along[fixed:]
    total = (r - s) ** 2 + square
    new = safe_sqrt(total)
    both = jnp.where(new + r > 0, new + r, 1.0)
    return jnp.concatenate([-along[:fixed], (s * (s - 2 * r) + square) / both])


def _add(
    params: Float[Array, " n"], lost: Float[Array, " n"], change: Float[Array, " n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The sum, with what rounding took from it kept for the next (Kahan 1965): in 10^9
    dimensions single steps are below the rounding of the norms in float32."""
    change = change + lost
    total = params + change
    return total, change - (total - params)
