"""The same batch several times over: the noise of large steps, without their length."""

import equinox as eqx
from jaxtyping import Array

from .._checks import count
from .._types import Example, Key, Params, PyTree, RealScalar, RealScalarLike
from ._base import AbstractProblem


class Repeated(AbstractProblem):
    r"""A problem whose every batch is seen for several steps in a row.

    With `lr / times` in place of `lr`, one step on a batch becomes `times` short ones
    on the same batch with the same noise. That keeps the noise of large steps and takes
    away what their length does: on $\lambda (x - \xi)^2 / 2$ the stationary variance is

    $$\frac{\mathrm{Var}\, x}{\mathrm{Var}\, \xi} = \frac{1 - r}{1 + r}, \qquad
    r = (1 - \gamma \lambda / k)^k,$$

    and it diverges just where $|r| \ge 1$ (derived here). This is the control of the
    experiments of Mohtashami, Jaggi and Stich 2022, arXiv:2205.15142.

    **Arguments:**

    - `problem`: any problem.
    - `times`: $k$, the steps on each batch, whose size is that of the run.
    """

    problem: AbstractProblem
    times: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        count("times", self.times)

    @property
    def batch_size(self) -> int:
        """The size of the batches that are repeated: 1, but in a run of larger ones."""
        return 1

    def in_batches(self, batch_size: int) -> "Repeated":
        return _Batches(self.problem, self.times, batch_size)

    def init(self) -> Params:
        return self.problem.init()

    def origin(self) -> Params:
        return self.problem.origin()

    def stream(self, key: Key) -> PyTree[Array]:
        return self.problem.stream(key)

    def check_length(self, samples: int) -> None:
        steps = -(-samples // self.batch_size)
        self.problem.check_length(-(-steps // self.times) * self.batch_size)

    def example(self, stream: PyTree[Array], index: RealScalarLike) -> Example:
        step, place = index // self.batch_size, index % self.batch_size
        batch = step // self.times
        return self.problem.example(stream, batch * self.batch_size + place)

    def gradient(self, params: Params, example: Example) -> Params:
        return self.problem.gradient(params, example)

    def risk(self, params: Params) -> RealScalar:
        return self.problem.risk(params)


class _Batches(Repeated):
    """The same in a run, which knows the size of its batches."""

    size: int = eqx.field(static=True)

    @property
    def batch_size(self) -> int:
        return self.size
