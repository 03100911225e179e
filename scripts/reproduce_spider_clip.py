"""Every claim of the theory of SPIDER with clipping that we test, with a verdict.

The setting is that of arXiv:2303.00883. Its authors give orders; the constants, the
hard family and the statements checked here are derived, and counted over our own runs.
Writes data and figures into `results/spider_clip/`, and exits with an error where a
claim fails. `--quick` takes fewer seeds, fewer accuracies and smaller sums.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from _claims import (
    BLUE,
    GREEN,
    ORANGE,
    Claim,
    Report,
    at_least,
    at_most,
    reproduce,
)
from sklearn.datasets import load_breast_cancer

import jaxclip as jc

jax.config.update("jax_enable_x64", True)

GAP = 2.0  # f(x0) - inf f, but for the wall; L0 = L1 = sigma = 1 throughout.


class HardFamily(eqx.Module):
    """A one-dimensional loss that is as slow as any (1, 1)-smooth one: a plateau of
    slope 2 eps around a parabola, between two exponential walls."""

    eps: float

    @property
    def corner(self) -> float:
        """Where the plateau ends and the wall begins."""
        return GAP / (2 * self.eps)

    def start(self, slope: float) -> float:
        """The point on the wall where the derivative is `slope`."""
        return self.corner + float(np.log1p(slope - 2 * self.eps))

    def value(self, x: Any) -> Any:
        """f(x)."""
        x, edge = jnp.abs(x), 2 * self.eps
        wall = jnp.maximum(x - self.corner, 0.0)
        flat = jnp.where(x < edge, x**2 / 2, edge * x - edge**2 / 2)
        return flat + jnp.expm1(wall) - wall

    def sample(self, x: Any, phase: Any) -> Any:
        """The loss on one sample, whose derivative is f' + sqrt(2) cos(x + phase)."""
        return self.value(x) + jnp.sqrt(2.0) * jnp.sin(x + phase)

    def online(self, slope: float = 5.0) -> jc.Online:
        """The loss with phases that are drawn afresh."""
        return jc.Online(self.sample, jnp.array(self.start(slope)), phase, self.value)

    def total(self, size: int) -> jc.FiniteSum:
        """The loss with evenly spaced phases, over which the noise sums to zero."""
        phases = 2 * np.pi * np.arange(size) / size
        return jc.FiniteSum(self.sample, jnp.array(self.start(5.0)), phases)


def phase(key: Any) -> Any:
    """A phase of the noise."""
    return jr.uniform(key, maxval=2 * jnp.pi)


class Path(eqx.Module):
    """A run of SPIDER, step by step: leading axes of runs and steps."""

    slope: Any
    evaluations: Any
    error: Any
    violations: Any


def follow(
    family: HardFamily, problem: Any, optimiser: jc.Spider, steps: int, keys: Any
) -> Path:
    """Runs SPIDER and holds every step against the descent inequality

    f(x_{k+1}) <= f(x_k) - eta |v|^2 / 8 + 3/4 eta |v - f'|^2 + eta eps^2 / 4."""
    derivative = jax.grad(family.value)

    def body(run, _):
        after = optimiser.step(problem, run)
        x, v = run.params, after.state.estimator
        rate = optimiser.lr(0) * optimiser.clip.factor(jnp.abs(v), 0)
        error = (v - derivative(x)) ** 2
        allowed = rate * (-(v**2) / 8 + 0.75 * error + family.eps**2 / 4)
        rise = family.value(after.params) - family.value(x)
        seen = Path(
            jnp.abs(derivative(after.params)),
            after.state.evaluations,
            error,
            # Rounding apart, which is that of the value of f.
            rise > allowed + 1e-13,
        )
        return after, seen

    def one(key):
        start = optimiser.init(problem, key)
        return jax.lax.scan(body, start, length=steps)[1]

    return jax.jit(jax.vmap(one))(keys)


def half_are_there(slope: Any, evaluations: Any, eps: float) -> float:
    """The sample gradients when first half of the runs have |f'| <= eps."""
    share = np.mean(np.asarray(slope) <= eps, axis=0)
    if not np.any(share >= 0.5):
        return np.inf
    return float(np.asarray(evaluations)[np.argmax(share >= 0.5)])


def exponent(x: Any, y: Any) -> float:
    """The slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def online(report: Report) -> list[Claim]:
    """Sample gradients against the accuracy: eps^-3 with variance reduction, eps^-4
    for clipped SGD."""
    grid = np.array([0.2, 0.14, 0.1, 0.07, 0.05, 0.035])
    if report.quick:
        grid = grid[:-1]
    keys = jr.split(jr.key(report.seed), 16 if report.quick else 64)
    spider, sgd, violations = [], [], 0
    for eps in grid:
        family = HardFamily(float(eps))
        problem = family.online()
        optimiser = jc.Spider.online(1.0, 1.0, float(eps), 1.0)
        path = follow(family, problem, optimiser, int(4 / eps**2), keys)
        spider.append(half_are_there(path.slope, path.evaluations[0], eps))
        # The inequality holds where eps <= L0 / (8 L1).
        violations += int(np.sum(path.violations)) if eps <= 1 / 8 else 0
        every = int(1 / (400 * eps**4)) + 1
        curve = clipped_sgd(problem, family, every, keys)
        sgd.append(half_are_there(curve.observed, curve.step[0], eps))
    report.save("online", eps=grid, spider=spider, sgd=sgd)
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    slopes = []
    for name, values, color, marker in (
        ("clipped SGD", sgd, ORANGE, "s"),
        ("SPIDER with clipping", spider, BLUE, "o"),
    ):
        slopes.append(exponent(grid, values))
        label = f"{name}, exponent {slopes[-1]:.2f}"
        ax.loglog(grid, values, color=color, marker=marker, label=label)
    ax.set(xlabel=r"accuracy $\epsilon$", ylabel="sample gradients",
           title=r"Until half of the runs have $|f'| \leq \epsilon$")  # fmt: skip
    ax.legend()
    report.finish(figure, "online")
    return [
        Claim("clipped SGD: exponent of the accuracy", slopes[0], -4.2, -3.6),
        Claim("SPIDER with clipping: exponent of the accuracy", slopes[1], -3.2, -2.5),
        at_least("... apart by", slopes[1] - slopes[0], 0.8),
        at_most("violations of the descent inequality, online", violations, 0),
    ]


def clipped_sgd(problem: Any, family: HardFamily, every: int, keys: Any) -> jc.Curve:
    """Clipped SGD at the rate eps^2, for 400 records."""

    def one(key):
        return jc.simulate(
            problem,
            jc.HardClip(2.0),
            family.eps**2,
            steps=400 * every,
            every=every,
            key=key,
            observe=lambda x: jnp.abs(jax.grad(family.value)(x)),
        )

    return jax.jit(jax.vmap(one))(keys)


def steep_start(report: Report) -> list[Claim]:
    """From |f'| = 200, where a step of full length crosses to the other wall."""
    family = HardFamily(0.1)
    problem = family.online(slope=200.0)
    clipped = jc.Spider.online(1.0, 1.0, 0.1, 1.0)
    plain = eqx.tree_at(lambda s: s.clip, clipped, jc.Identity())
    ends = [
        jc.run_spider(
            problem, optimiser, steps=4000, every=4000, key=jr.key(report.seed)
        )
        for optimiser in (plain, clipped)
    ]
    overflows = float(np.isinf(ends[0].risk[-1]))
    return [
        at_least("SPIDER without a clip overflows from a slope of 200", overflows, 1),
        at_most("... and with one comes down", ends[1].risk[-1], GAP),
    ]


def guarantee(report: Report) -> list[Claim]:
    """The theorem at its own number of steps, online and for a sum."""
    eps, size = 0.1, 1024
    family = HardFamily(eps)
    keys = jr.split(jr.key(report.seed + 1), 16 if report.quick else 64)
    steps = int(np.ceil(8 * gap(family) / eps**2))
    claims = []
    for name, problem, optimiser, bound in (
        ("online", family.online(), jc.Spider.online(1.0, 1.0, eps, 1.0),
         64 * gap(family) * eps**-3 + eps**-2),
        ("finite sum", family.total(size), jc.Spider.finite_sum(1.0, 1.0, eps, size),
         64 * gap(family) * size**0.5 * eps**-2 + size),
    ):  # fmt: skip
        path = follow(family, problem, optimiser, steps, keys)
        # The output is the point before a step that is drawn at random.
        output = np.minimum(np.asarray(path.slope), 1.0).mean()
        error = np.asarray(path.error)
        mean = error.mean(axis=0)
        spread = error.std(axis=0, ddof=1) / np.sqrt(len(keys))
        claims += [
            at_most(f"{name}: E min(|f'|, L0 / L1)", output, 12 * eps),
            at_most(f"{name}: sample gradients", path.evaluations[0, -1], bound),
            at_most(
                f"{name}: largest E |v - f'|^2 less 4 standard errors, in eps^2",
                np.max(mean - 4 * spread) / eps**2,
                2.27,
            ),
            at_most(
                f"{name}: violations of descent in {len(keys) * steps} steps",
                np.sum(path.violations),
                0,
            ),
        ]
    return claims


def gap(family: HardFamily) -> float:
    """f(x0) - inf f."""
    return float(family.value(family.start(5.0)))


def finite_sum(report: Report) -> list[Claim]:
    """Sample gradients against the size of the sum: its root, beside all of it."""
    eps = 0.05
    sizes = 4 ** np.arange(3, 7 if report.quick else 8)
    family = HardFamily(eps)
    keys = jr.split(jr.key(report.seed), 8 if report.quick else 32)
    spider, full, violations = [], [], 0
    for size in sizes:
        problem = family.total(int(size))
        optimiser = jc.Spider.finite_sum(1.0, 1.0, eps, int(size))
        path = follow(family, problem, optimiser, int(4 / eps**2), keys)
        spider.append(half_are_there(path.slope, path.evaluations[0], eps))
        violations += int(np.sum(path.violations))
        curve = jc.simulate(
            problem.whole(),
            optimiser.clip,
            0.5,
            steps=int(4 / eps**2),
            key=keys[0],
            observe=lambda x: jnp.abs(jax.grad(family.value)(x)),
        )
        full.append(half_are_there(curve.observed[None], size * curve.step, eps))
    report.save("finite_sum", size=sizes, spider=spider, full=full)
    figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    slopes = []
    for name, values, color, marker in (
        ("clipped full gradient", full, GREEN, "^"),
        ("SPIDER with clipping", spider, BLUE, "o"),
    ):
        slopes.append(exponent(sizes, values))
        label = f"{name}, exponent {slopes[-1]:.2f}"
        ax.loglog(sizes, values, color=color, marker=marker, label=label)
    ax.set(xlabel="terms of the sum", ylabel="sample gradients",
           title=r"Until half of the runs have $|F'| \leq 0.05$")  # fmt: skip
    ax.legend()
    report.finish(figure, "finite_sum")
    return [
        Claim("SPIDER with clipping: exponent of the size", slopes[1], 0.45, 0.6),
        Claim("clipped full gradient: exponent of the size", slopes[0], 0.98, 1.02),
        at_most("violations of the descent inequality, sums", violations, 0),
    ]


def tumours(report: Report) -> list[Claim]:
    """Logistic regression with a penalty that is not convex, on breast cancer data:
    the sample gradients until the gradient's norm is eps.

    Each method has the best of its rates up to 2 / L, the largest with a guarantee of
    descent, and SPIDER one setting for both accuracies.
    """
    problem = breast_cancer()
    rows = np.asarray(problem.data[0])
    curvature = np.linalg.eigvalsh(rows.T @ rows / len(rows))[-1] / 4 + 2e-2
    small = np.array([0.02, 0.03, 0.06, 0.1, 0.3, 1.0, 2.0])
    keys = jr.split(jr.key(report.seed), 4 if report.quick else 16)
    paths = {
        "full gradient": descent(problem, np.array([0.5, 1, 2, 4, 8]) / curvature),
        "SGD, batches of 24": stochastic(problem, small / curvature, keys),
        "SPIDER with clipping": variance_reduced(problem, curvature, keys),
    }
    within = {name: 3 if name != "SGD, batches of 24" else 7 for name in paths}
    spent, anyhow = {}, {}
    figure, ax = plt.subplots(figsize=(6.8, 4.4), layout="constrained")
    for (name, (norms, count)), color in zip(
        paths.items(), (GREEN, ORANGE, BLUE), strict=True
    ):
        hits = np.array([[typical(x, count, eps) for eps in (1e-2, 1e-3)]
                         for x in norms])  # fmt: skip
        spent[name] = hits[: within[name]].min(axis=0)
        anyhow[name] = hits.min(axis=0)
        best = hits[: within[name], 1].argmin()
        ax.loglog(count[1:], np.median(norms[best], 0)[1:], color=color, label=name)
    ax.axhline(1e-3, color="0.5", lw=1)
    ax.set(xlabel="sample gradients", ylabel=r"norm of the gradient $\|\nabla F\|$",
           title="Breast cancer data, each at its best rate for 1e-3")  # fmt: skip
    ax.legend()
    report.finish(figure, "tumours")
    full, sgd, spider = spent.values()
    report.save("tumours", full=full, sgd=sgd, spider=spider)
    tuned = anyhow["full gradient"][1] / anyhow["SPIDER with clipping"][1]
    return [
        at_least("eps = 1e-3: full gradient over SPIDER", full[1] / spider[1], 5),
        at_least("eps = 1e-3: SGD over SPIDER", sgd[1] / spider[1], 5),
        at_most("eps = 1e-2: SGD over SPIDER", sgd[0] / spider[0], 1),
        # On this loss rates beyond 2 / L happen to be stable, and the lead shrinks.
        at_least("eps = 1e-3: full gradient over SPIDER, any rate", tuned, 2),
    ]


def descent(problem: jc.FiniteSum, rates: Any) -> tuple[Any, Any]:
    """Gradient norms, shape (rates, 1, records), and the sample gradients so far."""

    def one(rate):
        return jc.simulate(problem.whole(), jc.Identity(), rate, steps=1200, every=2,
            key=jr.key(0), observe=gradient_norm(problem))  # fmt: skip

    curve = jax.jit(jax.vmap(one))(rates)
    return np.asarray(curve.observed)[:, None], problem.size * curve.step[0]


def stochastic(problem: jc.FiniteSum, rates: Any, keys: Any) -> tuple[Any, Any]:
    """The same of SGD with batches of 24, shape (rates, keys, records)."""

    def one(rate, key):
        return jc.simulate(problem, jc.Identity(), rate, steps=36_000, every=20,
            key=key, batch_size=24, observe=gradient_norm(problem))  # fmt: skip

    curve = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(rates, keys)
    return np.asarray(curve.observed), 24 * np.asarray(curve.step)[0, 0]


def variance_reduced(
    problem: jc.FiniteSum, curvature: float, keys: Any
) -> tuple[Any, Any]:
    """The same of SPIDER, at batches and a period of 24, the root of the rows."""
    see = gradient_norm(problem)

    def one(rate, key):
        # The curvature of a logistic loss of a row of norm 1 is at most its slope, so
        # L1 = 1; a clip at eps itself would be slow without need.
        clip, variant = jc.SpiderClip(curvature, 1.0, 0.03), jc.PeriodicSpider(24)
        optimiser = jc.Spider(clip, rate / curvature, variant, batch_size=24)
        return jc.run_spider(problem, optimiser, steps=2400, every=4, key=key,
            observe=lambda run: (see(run.params), run.state.evaluations))  # fmt: skip

    rates = np.array([0.5, 1, 2, 4, 8])
    curve = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(rates, keys)
    norms, count = curve.observed
    return np.asarray(norms), np.asarray(count)[0, 0]


def gradient_norm(problem: jc.FiniteSum) -> Callable[[Any], Any]:
    """The norm of the full gradient as a function of the parameters."""
    return lambda params: jc.safe_norm(problem.full_gradient(params))


def typical(norms: Any, count: Any, eps: float) -> float:
    """The median over runs of the sample gradients until the norm is eps."""
    there = norms <= eps
    first = np.where(there.any(axis=1), there.argmax(axis=1), -1)
    return float(np.median(np.where(first < 0, np.inf, np.asarray(count)[first])))


def breast_cancer() -> jc.FiniteSum:
    """569 tumours: standardised features, each row of norm 1, from w = 3."""
    data: Any = load_breast_cancer()
    X = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    X = X / np.linalg.norm(X, axis=1, keepdims=True)

    def loss(w, example):
        features, label = example
        penalty = jnp.sum(w**2 / (1 + w**2))
        return jax.nn.softplus(-label * (features @ w)) + 1e-2 * penalty

    return jc.FiniteSum(loss, jnp.full(30, 3.0), (X, 2.0 * data.target - 1))


if __name__ == "__main__":
    reproduce(
        str(__doc__).splitlines()[0],
        "spider_clip",
        23,
        [online, steep_start, guarantee, finite_sum, tumours],
    )
