"""The claims of `reproduce_noisy_gd.py` about models: which solution a noise selects.

Not a program of its own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from _claims import BLUE, GREEN, ORANGE, Claim, Report, at_least, at_most, near, of

import jaxclip as jc

NONE = jc.Identity()
solve: Any = eqx.filter_jit(jc.solve)


def ends(report: Report, problem: Any, lr: float, steps: int, runs: int) -> Any:
    """The parameters after so many steps, one row for each run."""
    return np.asarray(_ends(problem, lr, steps, jr.split(jr.key(report.seed), runs)))


# The problem is an argument: a second threshold does not compile again.
@eqx.filter_jit
def _ends(problem: Any, lr: float, steps: int, keys: Any) -> Any:
    def one(key):
        return jc.simulate(problem, NONE, lr, steps=steps, every=steps, key=key).params

    return jax.vmap(one)(keys)


def slope(x: Any, y: Any) -> float:
    """The exponent of y as a power of x."""
    return float(np.polyfit(np.log(x), np.log(np.abs(y)), 1)[0])


def diagonal(w, x, scale=1.0):
    return jnp.sum(x * w[0] * w[1] * scale)


def difference(w, x):
    return jnp.sum(x * (w[0] ** 2 - w[1] ** 2))


def diagonal_network() -> tuple[Any, Any, Any]:
    """A diagonal network at zero loss: its start, inputs and labels."""
    row, column = np.meshgrid(np.arange(1, 4), np.arange(1, 9), indexing="ij")
    x = np.cos(1.3 * row * column + 0.7 * row) + 0.5 * np.sin(0.9 * row + 2.1 * column)
    y = x @ np.array([0, 1.0, 0, 0, -0.5, 0, 0, 0])
    j = np.arange(1, 9)
    u, v = 1 + 0.3 * np.cos(j), 0.2 * np.sin(2 * j)
    for _ in range(8):
        jacobian = np.concatenate([x * v, x * u], axis=1)
        u, v = np.split(
            np.concatenate([u, v]) - np.linalg.pinv(jacobian) @ (x @ (u * v) - y), 2
        )
    return jnp.asarray(np.stack([u, v])), jnp.asarray(x), jnp.asarray(y)


def _weighted_l1(x: np.ndarray, y: Any, weights: np.ndarray) -> np.ndarray:
    """The solution of X beta = y of the least sum of weights times |beta|."""
    program = scipy.optimize.linprog(
        np.concatenate([weights, weights]), A_eq=np.concatenate([x, -x], 1), b_eq=y
    )
    positive, negative = np.split(program.x, 2)
    return positive - negative


def selection(report: Report) -> list[Claim]:
    """Which solution each noise ends at."""
    start, x, y = diagonal_network()
    xs = np.asarray(x)
    kappa, steps = np.sum(xs**2, axis=0), np.array([0.0, 3.0, 600.0])
    one = jc.Gaussian(1.0)
    label = jc.Interpolation(diagonal, start, x, y, jc.inject.Label(one))
    drop = jc.Interpolation(diagonal, start, x, y, jc.inject.Dropout(one, units=8))
    l1 = solve(label, NONE, 1.0, steps=steps, limit=jc.ZeroLossFlow())
    l2 = solve(drop, NONE, 1.0, steps=steps, limit=jc.ZeroLossFlow())
    scaled = xs / kappa
    sparse = _weighted_l1(xs, y, kappa)
    ridge = scaled.T @ np.linalg.solve(scaled @ xs.T, y)
    beta1, beta2 = (np.prod(curve.params, axis=0) for curve in (l1, l2))
    trace = np.sum(kappa * np.sum(np.asarray(l1.path[1]) ** 2, axis=0)) / 36
    _selected(report, np.prod(start, axis=0), (beta1, sparse), (beta2, ridge))
    return of("derived here", [
        near("label noise: (1/4n) tr H at t = 3", trace, 0.296011938, 1e-8),
        at_most("label noise ends at the weighted l1 solution: distance",
                np.abs(beta1 - sparse).max(), 1e-5),
        at_most("dropout ends at the weighted l2 solution: distance",
                np.abs(beta2 - ridge).max(), 1e-9),
    ])  # fmt: skip


def _selected(report: Report, start: Any, label: Any, dropout: Any) -> None:
    """Ends of the flow as bars, and the solutions they are said to be as points."""
    index = np.arange(len(start))
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    ax.bar(index - 0.3, start, 0.3, color="0.75", label="start")
    ax.bar(index, label[0], 0.3, color=BLUE, label="after label noise")
    ax.bar(index + 0.3, dropout[0], 0.3, color=ORANGE, label="after dropout")
    ax.plot(index, label[1], "kx", label="weighted l1 (linear program)")
    ax.plot(index + 0.3, dropout[1], "k+", ms=8, label="weighted l2 (ridge formula)")
    ax.axhline(0, color="k", lw=0.8)
    ax.set(
        xticks=index,
        xlabel="index of the coefficient",
        ylabel="coefficient",
        title="Label noise leaves three coefficients, dropout spreads them",
    )
    ax.legend(fontsize=8)
    report.finish(figure, "selection")


def squares(report: Report) -> list[Claim]:
    """u^2 - v^2 in place of u v: another path to the same solution."""
    start, x, y = diagonal_network()
    kappa = np.sum(np.asarray(x) ** 2, axis=0)
    # The same function as the other network's, with u v = 1/2 for every coefficient.
    beta = np.prod(start, axis=0)
    root = np.sqrt(beta**2 + 1)
    w = jnp.asarray(np.sqrt(np.stack([root + beta, root - beta]) / 2))
    problem = jc.Interpolation(difference, w, x, y, jc.inject.Label(jc.Gaussian(1.0)))
    times = np.array([0.0, 1.0, 3.0, 200.0])
    curve = solve(problem, NONE, 1.0, steps=times, limit=jc.ZeroLossFlow())
    rates, path = 4 * kappa / 9, np.prod(curve.path, axis=1)
    exact = path[0] * np.exp(-rates * times[:, None])
    beta = np.asarray(curve.params[0] ** 2 - curve.params[1] ** 2)
    away = np.abs(beta - _weighted_l1(np.asarray(x), y, kappa)).max()
    lr, steps = 0.005, 8000
    decay = np.log(0.5) - np.log(np.prod(ends(report, problem, lr, steps, 64), axis=1))
    measured = decay.mean(axis=0) / (steps * lr**2)
    return of("derived here", [
        at_most("u^2 - v^2: u v decays at the rate 4 kappa / n^2: distance",
                np.abs(path - exact).max(), 1e-9),
        at_most("u^2 - v^2: the rate in simulated runs, relative distance",
                np.abs(measured / rates - 1).max(), 0.05),
        at_most("u^2 - v^2 ends at the weighted l1 solution: distance", away, 1e-5),
    ])  # fmt: skip


def factors(report: Report) -> list[Claim]:
    """The trace of H of W2 W1 = A, and the nuclear norm of A."""
    out, hidden, into = 2, 3, 4
    keys = jr.split(jr.key(report.seed))
    w2 = jr.normal(keys[0], (out, hidden))
    w1 = jr.normal(keys[1], (hidden, into))
    # Inputs of covariance one: tr H is then that of |W2 W1 - A|^2 / 2.
    xs = into**0.5 * jnp.eye(into)
    ys = xs @ (w2 @ w1).T
    data: tuple[Any, Any, Any] = (w2, w1), xs, ys
    label = jc.inject.Label(jc.Gaussian(1.0))
    problem = jc.Interpolation(lambda w, x: w[0] @ (w[1] @ x), *data, label)
    times = np.array([0.0, 200.0])
    curve = solve(problem, NONE, 1.0, steps=times, limit=jc.ZeroLossFlow())
    w2, w1 = (np.asarray(path) for path in curve.path)
    trace = into * np.sum(w2**2, (1, 2)) + out * np.sum(w1**2, (1, 2))
    nuclear = np.linalg.svd(w2[0] @ w1[0], compute_uv=False).sum()
    least = 2 * np.sqrt(into * out) * nuclear
    return of("derived here", [
        at_least("W2 W1: tr H at the start over 2 sqrt(dp) |A|_*", trace[0] / least,
                 1.1),
        near("W2 W1: label noise leads it to 2 sqrt(dp) |A|_*", trace[1], least, 1e-9),
    ])  # fmt: skip


def sparse(report: Report) -> list[Claim]:
    """The quadratic model of HaoChen et al. 2020 (arXiv:2006.08680): 100 coefficients
    v^2 that start at one, five of them one in truth, 40 samples, the rate .01."""
    size, ones, n = 100, 5, 40
    truth = np.where(np.arange(size) < ones, 1.0, 0.0)
    x = np.random.default_rng(report.seed).normal(size=(n, size))
    data = jnp.ones(size), jnp.asarray(x), jnp.asarray(x @ truth)
    # Their loss is (y - <v^2, x>)^2 / 4, ours has 2 in place of 4: their rate of .01
    # makes our steps of .005, so that the slow time is a quarter of (.01 sigma)^2 k.
    lr = 0.01 / 2
    # One label a step, on average, is wrong by one. It weighs n times as much as here.
    wrong = jc.inject.Label(jc.noise.SparseSign(n**0.5, 1 / n))
    label = jc.Interpolation(_quadratic, *data, wrong)
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    flow = solve(label, NONE, lr, steps=times / lr**2, limit=jc.ZeroLossFlow(rtol=1e-7))

    def rate(step):  # a tenth at the end, where the noise is to settle
        return jnp.where(step < 100_000, lr, lr / 10)

    noisy = _coefficients(report, label, rate, 4 if report.quick else 8)
    plain = jc.Interpolation(_quadratic, *data, jc.inject.Minibatch())
    batches = _coefficients(report, plain, lr, 1)

    def error(coefficients):
        return np.linalg.norm(coefficients - truth, axis=-1) / np.sqrt(ones)

    path = error(np.asarray(flow.path) ** 2)
    report.save("sparse", times=times, flow=path, label=error(noisy),
                minibatch=error(batches))  # fmt: skip
    _recovery(report, times, path, error(noisy), error(batches)[0])
    # At slow times .1, .2, .3 and .5.
    clock = error(noisy.mean(axis=0))[[1, 2, 3, 5]] / path[1:5] - 1
    return of("HaoChen et al. 2020; weaker: fewer steps, noise of signs", [
        at_least("sparse vector: distance without noise", path[0], 2),
        at_least("sparse vector: least distance under minibatches",
                 error(batches).min(), 2),
        at_most("sparse vector: largest distance of the runs with label noise",
                error(noisy)[:, 25].max(), 0.2),
        at_most("... after 20000 steps at a tenth of the rate",
                error(noisy)[:, -1].max(), 0.06),
    ]) + of("derived here", [
        at_most("sparse vector: distance under label noise, flow at t = 3", path[-1],
                1e-3),
        at_most("sparse vector: mean of runs, relative distance from the flow",
                np.abs(clock).max(), 0.05),
    ])  # fmt: skip


def _quadratic(v, x):
    return jnp.sum(x * v**2)


def _coefficients(report: Report, problem: Any, lr: Any, runs: int) -> np.ndarray:
    """v^2 at every 4000th of 120000 steps."""

    def one(key):
        setting = {"steps": 120_000, "every": 4000, "observe": lambda v: v**2}
        return jc.simulate(problem, NONE, lr, key=key, **setting).observed

    return np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(report.seed), runs)))


def _recovery(report: Report, times: Any, flow: Any, label: Any, batch: Any) -> None:
    steps = 4 * np.arange(len(batch))
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for i, run in enumerate(label):
        ax.plot(steps, run, color=BLUE, lw=0.8, alpha=0.5,
                label=None if i else f"label noise: {len(label)} runs")  # fmt: skip
    ax.plot(40 * times, flow, "k--", label="label noise: the flow, at the first rate")
    ax.plot(steps, batch, color=GREEN, label="minibatches")
    ax.axhline(flow[0], color=ORANGE, label="no noise: end of the gradient flow")
    ax.axvline(100, color="0.5", lw=0.8, ls=":", label="a tenth of the rate from here")
    ax.set(
        yscale="log",
        xlabel="thousand steps (40 are one unit of slow time)",
        ylabel="relative distance to the sparse vector",
        title="Label noise recovers a sparse vector, minibatches do not",
    )
    ax.legend(fontsize=8)
    report.finish(figure, "sparse")
