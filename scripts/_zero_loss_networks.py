"""The claims of `reproduce_noisy_gd.py` about networks, whose drift autodiff finds.

Not a program of its own.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from _claims import BLUE, GREEN, ORANGE, Claim, Report, at_most, of
from _zero_loss_models import NONE, slope, solve

import jaxclip as jc


def network(report: Report) -> list[Claim]:
    """A two-layer equinox network: its drift, found by autodiff, against runs."""
    xs = jnp.linspace(-1, 1, 4)[:, None]
    apply, arrays = _network(jr.key(0), 1, "scalar", 8, 1, scale=2.0)
    problem = _label_noise(apply, arrays, xs)

    @jax.jit
    def trace(arrays):
        return _trace(apply, arrays, xs)

    times = np.linspace(0, 8, 5)
    limit = solve(problem, NONE, 1.0, steps=times, limit=jc.ZeroLossFlow())
    flow = np.array([trace(_at(limit.path, i)) for i in range(len(times))])
    rates = (0.2, 0.1) if report.quick else (0.2, 0.1, 0.05)
    means, errors = zip(
        *(_traces(report, problem, lr, trace) for lr in rates), strict=True
    )
    # The distance is of first order in the rate: two rates tell what is at none.
    mean = 2 * means[-1] - means[-2]
    error = np.sqrt(4 * errors[-1] ** 2 + errors[-2] ** 2)
    away = np.abs(mean - flow)[1:]
    _by_the_flow(report, times, flow, rates, means, errors, mean)
    return of("paper: the flow of label noise; weaker: of means, not in law", [
        at_most("network: tr H under label noise, end over start", flow[-1] / flow[0],
                0.95),
        at_most("network: standard errors of the runs, at no rate, from the flow",
                (away / error[1:]).max(), 4.0),
        at_most("network: their distance over the fall of tr H",
                away.max() / (flow[0] - flow[-1]), 0.05),
    ])  # fmt: skip


def _at(path: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], path)


def _traces(
    report: Report, problem: Any, lr: float, trace: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and its error at slow times 0, 2, 4, 6 and 8."""
    runs, steps = 1024, round(8 / lr**2)

    def one(key):
        setting = {"steps": steps, "every": steps // 4, "observe": trace}
        return jc.simulate(problem, NONE, lr, key=key, **setting).observed

    observed = np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(report.seed), runs)))
    return observed.mean(axis=0), observed.std(axis=0, ddof=1) / np.sqrt(runs)


def _by_the_flow(
    report: Report, times: Any, flow: Any, rates: Any, means: Any, errors: Any, at: Any
) -> None:
    figure, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
    ax.plot(times, flow, "k--", label="flow, the limit of a small rate")
    for lr, color, mean, error in zip(
        rates, (ORANGE, GREEN, BLUE), means, errors, strict=False
    ):
        ax.errorbar(times, mean, 4 * error, fmt="o", ms=4, color=color, capsize=3,
                    label=f"mean of runs, rate {lr}, four standard errors")  # fmt: skip
    ax.plot(times, at, "kx", ms=7, label="extrapolated from the two smallest rates")
    ax.set(
        xlabel="slow time: (rate x std of the noise)$^2$ x steps",
        ylabel="tr H",
        title="A two-layer network under label noise follows the flow",
    )
    ax.legend(fontsize=8)
    report.finish(figure, "network")


def _network(key: Any, *args: Any, scale: float = 1.0) -> tuple[Any, Any]:
    """An equinox network as a function of its arrays and one input, and its arrays."""
    net = eqx.nn.MLP(*args, activation=jnp.tanh, key=key)
    arrays, static = eqx.partition(net, eqx.is_inexact_array)
    arrays = jax.tree.map(lambda leaf: scale * leaf, arrays)
    return lambda arrays, x: eqx.combine(arrays, static)(x), arrays


def _label_noise(apply: Any, arrays: Any, xs: Any) -> jc.Interpolation:
    """Labels that the network gives already: it starts on the zero-loss set."""
    ys = jax.jit(jax.vmap(apply, (None, 0)))(arrays, xs)
    return jc.Interpolation(apply, arrays, xs, ys, jc.inject.Label(jc.Gaussian(1.0)))


def _trace(apply: Any, arrays: Any, xs: Any) -> Any:
    """The trace of the Hessian at zero loss, for one output."""
    slopes = jax.vmap(jax.grad(apply), (None, 0))(arrays, xs)
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slopes)) / len(xs)


def cost(report: Report) -> list[Claim]:
    """The flow without a Jacobian, against the number of parameters of a network."""
    xs = jr.normal(jr.key(report.seed), (8, 2))
    sizes, seconds, losses, traces = [], [], [], []
    for width in (30, 100, 315):
        apply, arrays = _network(jr.key(report.seed), 2, "scalar", width, 2)
        problem = _label_noise(apply, arrays, xs)
        args = jc.ZeroLossFlow(True, rtol=1e-6), problem, NONE, 0.1
        steps = np.array([0.0, 1000.0])
        run = solve.lower(*args, steps=steps).compile()
        begin = time.perf_counter()
        curve = jax.block_until_ready(run(*args, steps=steps))
        seconds.append(time.perf_counter() - begin)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(arrays)))
        losses.append(float(curve.risk[-1]))
        traces.append(_trace(apply, curve.params, xs) / _trace(apply, arrays, xs))
        print(f"{sizes[-1]:>8} parameters: {seconds[-1]:.2f} s", flush=True)
    report.save("cost", parameters=sizes, seconds=seconds)
    exponent = slope(sizes, seconds)
    more, longer = sizes[-1] / sizes[0], seconds[-1] / seconds[0]
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.loglog(sizes, seconds, "o-", color=BLUE)
    ax.set(
        xlabel="parameters of the network",
        ylabel="seconds, without compilation",
        title=f"{more:.0f} times the parameters take {longer:.0f} times as long",
    )
    report.finish(figure, "cost")
    return of("derived here", [
        at_most("matrix-free flow of a network: its loss", max(losses), 1e-10),
        at_most("matrix-free flow: tr H against its start", max(traces), 0.99),
        at_most("matrix-free flow: exponent of the cost in parameters", exponent, 1.5),
    ])  # fmt: skip
