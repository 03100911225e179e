"""The ways to compute a run, and which one is taken."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._checks import count
from .._curve import Curve
from .._types import Schedule
from ..clip import AbstractClip
from ..problem import AbstractGaussianLinear, AbstractLinear, AbstractProblem
from ..transform import AbstractScope, PerExample, as_transform
from ._blocked import run_blocked
from ._direct import run_optimiser
from ._loop import Run
from ._lumped import run_lumped

# Above it a block of 64 samples takes gigabytes, and a step tens of milliseconds.
_LARGEST_BLOCKED = 10**7


class AbstractEngine(eqx.Module):
    """A way to compute a run.

    `Direct()` and `Blocked()` give the same run for the same key; `Lumped()` gives
    another one of the same law.
    """

    @abc.abstractmethod
    def compute(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        scope: AbstractScope,
        run: Run,
    ) -> Curve:
        """The run; the arguments are those of [`jaxclip.simulate`][], checked.

        **Arguments:**

        - `run`: has the fields `steps`, `every`, `key`, `batch_size` and `observe`.
        """


class Direct(AbstractEngine):
    """One step at a time, for any problem and any rule.

    The step is that of the optax optimiser
    `chain(as_transform(clip, scope), scale_by_learning_rate(lr))`.
    """

    def compute(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        scope: AbstractScope,
        run: Run,
    ) -> Curve:
        optimiser = optax.chain(
            as_transform(clip, scope), optax.scale_by_learning_rate(lr)
        )
        # A scope over examples reduces the batch itself, after clipping.
        reduce = (lambda g: g) if isinstance(scope, PerExample) else mean
        return run_optimiser(problem, optimiser, reduce, run)


class Blocked(AbstractEngine):
    """Many steps at a time by matrix products, for linear models.

    The same trajectory as [`jaxclip.Direct`][] to rounding, several times faster, and
    much more so under a `vmap` over settings that share their key: the features and
    their Gram matrix are then made once for all settings. The memory of a block is
    `size * (d + size)` numbers, and a gradient keeps one set of parameters a block.

    **Arguments:**

    - `size`: samples in a block; blocks are cut at every recorded step. By default
        128 where at least 64 settings share them in more than 100 dimensions, and 64
        otherwise: a longer block makes larger products, but its Gram matrix costs
        `size / settings` of them.
    - `settings`: how many settings a `vmap` around the run holds, which the run itself
        cannot see. It changes the default of `size` and nothing else.
    """

    size: int | None = eqx.field(static=True, default=None)
    settings: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        count("settings", self.settings)
        if self.size is not None:
            count("size", self.size)

    def block(self, dim: int) -> int:
        """The samples in a block of a problem in `dim` dimensions."""
        if self.size is not None:
            return self.size
        return 128 if self.settings >= 64 and dim > 100 else 64

    def compute(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        scope: AbstractScope,
        run: Run,
    ) -> Curve:
        if not isinstance(problem, AbstractLinear):
            raise ValueError(
                "`Blocked()` needs a linear model, whose gradients are multiples of "
                f"the features. Got a {type(problem).__name__}; use `Direct()`."
            )
        size = self.block(problem.init().size)
        return run_blocked(problem, clip, lr, scope, run, size)


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

    `Curve.params` are the norms $r_j$, shape `(m,)`, that of the eigenvalues. For
    [`jaxclip.Logistic`][] they have shape `(2 m,)`: the components along $x^*$, then
    the norms of what is orthogonal to it.
    """

    def compute(
        self,
        problem: AbstractProblem,
        clip: AbstractClip,
        lr: Schedule,
        scope: AbstractScope,
        run: Run,
    ) -> Curve:
        if not isinstance(problem, AbstractGaussianLinear):
            raise ValueError(
                "`Lumped()` needs Gaussian features, such as those of `LeastSquares`. "
                f"Got a {type(problem).__name__}; use `Blocked()` or `Direct()`."
            )
        if run.observe is not None:
            raise ValueError(
                "`observe` is a function of all parameters, and `Lumped()` has only "
                "their norm in each eigenspace. Leave it out, or use `Blocked()`."
            )
        return run_lumped(problem, clip, lr, scope, run)


def default_engine(problem: AbstractProblem) -> AbstractEngine:
    """The engine that [`jaxclip.simulate`][] takes where none is given.

    | problem | engine |
    |---|---|
    | Gaussian features, more than 10^7 dimensions, repeated eigenvalues | `Lumped()` |
    | other linear models: `LeastSquares`, `Logistic`, `Regression` ... | `Blocked()` |
    | anything else | `Direct()` |

    Up to 10^7 dimensions a run thus sees the same data as [`jaxclip.train`][] does on
    the same key.

    **Arguments:**

    - `problem`: what SGD runs on.
    """
    if isinstance(problem, AbstractGaussianLinear):
        dim, eigenvalues = problem.spectrum.dim, problem.spectrum.eigenvalues.size
        if dim > _LARGEST_BLOCKED and eigenvalues < dim:
            return Lumped()
    return Blocked() if isinstance(problem, AbstractLinear) else Direct()


def mean(gradients: PyTree[Array]) -> PyTree[Array]:
    """The mean over the leading axis of each leaf."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), gradients)
