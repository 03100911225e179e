"""Every claim of the theory of noisy gradient descent that we test, with a verdict.

The setting is that of arXiv:2404.12293: noise moves gradient descent along the set of
zero loss, on two scales of time. What is derived here is marked so. Writes the data and
the figures into `results/noisy_gd/`, and exits with an error where a claim fails.
`--quick` takes fewer runs, and the cost of a smaller network.

Not tested: the experiments on the quadratic model of HaoChen et al. in 100 dimensions,
and convergence in law of whole paths of diffusions, of which we see the mean only.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from _claims import BLUE, ORANGE, Claim, Report, at_most, near, reproduce

import jaxclip as jc

jax.config.update("jax_enable_x64", True)

NONE = jc.Identity()
solve: Any = eqx.filter_jit(jc.solve)
PRODUCT: tuple[Any, Any, Any] = jnp.array([2.0, 0.5]), jnp.ones(1), jnp.ones(1)
ANGLE = 0.2
CIRCLE: tuple[Any, Any, Any] = (
    jnp.array([np.cos(ANGLE), np.sin(ANGLE)]),
    jnp.ones(1),
    jnp.ones(1),
)


def product(w, x):
    return w[0] * w[1] * x


def circle(w, x, scale):
    return x * jnp.sum(w**2 * scale)


def diagonal(w, x, scale=1.0):
    return jnp.sum(x * w[0] * w[1] * scale)


def _ends(report: Report, problem: Any, lr: float, steps: int, runs: int) -> Any:
    """The parameters after so many steps, one row for each run."""

    def one(key):
        curve = jc.simulate(problem, NONE, lr, steps=steps, every=steps, key=key)
        return curve.params

    return np.asarray(jax.jit(jax.vmap(one))(jr.split(jr.key(report.seed), runs)))


def _slope(x: Any, y: Any) -> float:
    return float(np.polyfit(np.log(x), np.log(np.abs(y)), 1)[0])


def _decay(ends: Any, mean: bool = False) -> float:
    """By how much the logarithm of u^2 - v^2 has fallen."""
    a = ends[:, 0] ** 2 - ends[:, 1] ** 2
    return float(np.log(3.75) - (np.log(a.mean()) if mean else np.log(a).mean()))


def _turn(ends: Any) -> np.ndarray:
    """The logarithm of the tangent of twice the angle, less that of the start."""
    doubled = 2 * np.arctan2(ends[:, 1], ends[:, 0])
    return np.log(np.tan(doubled)) - np.log(np.tan(2 * ANGLE))


def label_noise(report: Report) -> list[Claim]:
    """The rate, and how fast its limit is reached, on (w1 w2 - 1)^2 / 2."""
    problem = jc.LabelNoise(product, *PRODUCT, jc.Gaussian(1.0))
    rates = np.array([0.1, 0.05, 0.025, 0.0125])
    runs, decays = 2048, []
    for lr in rates:
        ends = _ends(report, problem, float(lr), round(0.5 / lr**2), runs)
        decays.append((_decay(ends), _decay(ends, mean=True)))
    per_step, mean = np.array(decays).T
    per_step = per_step / np.round(0.5 / rates**2)
    # The mean of u^2 - v^2 itself, against exp(-1/2) of its start.
    error = np.exp(-mean) - np.exp(-0.5)
    report.save("label_noise", rates=rates, per_step=per_step, error=error)
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.loglog(rates, per_step, "o-", color=BLUE, label="rate of decay per step")
    ax.loglog(rates, np.abs(error), "s-", color=ORANGE, label="error of the mean")
    ax.set(xlabel="learning rate", title="Label noise: rate and error")
    ax.legend()
    report.finish(figure, "label_noise")
    return [
        Claim("label noise: exponent of the rate", _slope(rates, per_step), 1.95, 2.15),
        Claim("label noise: order of the error", _slope(rates[1:], error[1:]), 0.85,
              1.15),
    ]  # fmt: skip


def dropout(report: Report) -> list[Claim]:
    """The same for dropout on a circle, with noise of a fixed and of a falling size."""
    rates, runs = np.array([0.08, 0.04, 0.02, 0.01]), 4096
    per_step = []
    for lr in rates:
        problem = jc.Dropout(circle, *CIRCLE, jc.Gaussian(0.1), units=2)
        steps = round(0.3 / (lr * 0.01))
        per_step.append(_turn(_ends(report, problem, float(lr), steps, runs)).mean())
    per_step = np.array(per_step) / np.round(0.3 / (rates * 0.01))
    coarse, errors = np.array([0.2, 0.1, 0.05]), []
    for lr in coarse:
        noise = jc.Gaussian(float(np.sqrt(lr / 5)))
        problem = jc.Dropout(circle, *CIRCLE, noise, units=2)
        steps = round(0.3 / (lr**2 / 5))
        ends = _ends(report, problem, float(lr), steps, 8 * runs)
        angle = np.arctan(np.tan(2 * ANGLE) * np.exp(2 * 0.3)) / 2
        exact = np.array([np.cos(angle), np.sin(angle)])
        errors.append(np.linalg.norm(ends.mean(axis=0) - exact))
    report.save("dropout", rates=rates, per_step=per_step, coarse=coarse, error=errors)
    return [
        Claim("dropout: exponent of the rate", _slope(rates, per_step), 0.95, 1.05),
        Claim("dropout: order of the error", _slope(coarse, errors), 0.8, 1.3),
    ]


def _network(seed: int = 0) -> tuple[Any, Any, Any]:
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


def selection(report: Report) -> list[Claim]:
    """Which solution each noise ends at, and that minibatches select none."""
    start, x, y = _network()
    kappa, steps = np.sum(np.asarray(x) ** 2, axis=0), np.array([0.0, 3.0, 600.0])
    one = jc.Gaussian(1.0)
    label = jc.LabelNoise(diagonal, start, x, y, one)
    drop = jc.Dropout(diagonal, start, x, y, one, units=8)
    l1 = solve(jc.ZeroLossFlow(), label, NONE, 1.0, steps=steps)
    l2 = solve(jc.ZeroLossFlow(), drop, NONE, 1.0, steps=steps)
    xs = np.asarray(x)
    program = scipy.optimize.linprog(
        np.concatenate([kappa, kappa]), A_eq=np.concatenate([xs, -xs], 1), b_eq=y
    )
    sparse = program.x[:8] - program.x[8:]
    scaled = xs / kappa
    ridge = scaled.T @ np.linalg.solve(scaled @ xs.T, y)
    beta1, beta2 = (np.prod(curve.params, axis=0) for curve in (l1, l2))
    trace = np.sum(kappa * np.sum(np.asarray(l1.observed[1]) ** 2, axis=0)) / 36
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.bar(np.arange(8) - 0.2, beta1, 0.4, color=BLUE, label="label noise: weighted l1")
    ax.bar(np.arange(8) + 0.2, beta2, 0.4, color=ORANGE, label="dropout: weighted l2")
    ax.set(xlabel="coefficient", title="Each noise selects its own solution")
    ax.legend()
    report.finish(figure, "selection")
    batches = jc.Minibatch(diagonal, start, x, y)
    ends = _ends(report, batches, 0.1, 2000, 512)
    return [
        near("label noise: (1/4n) tr H at t = 3", trace, 0.296011938, 1e-8),
        at_most("label noise ends at the weighted l1 solution: distance",
                np.abs(beta1 - sparse).max(), 1e-5),
        at_most("dropout ends at the weighted l2 solution: distance",
                np.abs(beta2 - ridge).max(), 1e-9),
        at_most("minibatches: drift in 2000 steps",
                np.abs(ends - np.asarray(start)).max(), 1e-8),
    ]  # fmt: skip


def clipping(report: Report) -> list[Claim]:
    """What clips of the residuals do to the motion. Derived here."""
    claims, lr = [], 0.0125
    for threshold in (1.0, 0.5):
        clip = jc.HardClip(threshold)
        problem = jc.LabelNoise(product, *PRODUCT, jc.Gaussian(1.0), residual_clip=clip)
        steps = round(0.5 / lr**2)
        rate = _decay(_ends(report, problem, lr, steps, 1024)) / (steps * lr**2)
        second = float(jc.moments(clip, jc.Gaussian(1.0), 0.0, 1.0).second)
        text = f"label noise clipped at {threshold}: slow time times E psi^2"
        claims.append(near(text, rate, second, 0.02))
    std, lr = 0.05, 0.02
    for threshold in (1.0, 0.5):
        clip = jc.HardClip(threshold * std)
        problem = jc.Dropout(
            circle, *CIRCLE, jc.Gaussian(std), units=2, residual_clip=clip
        )
        steps = round(0.3 / (lr * std**2))
        turn = _turn(_ends(report, problem, lr, steps, 512)).mean()
        limit = solve(jc.ZeroLossFlow(), problem, NONE, lr, steps=np.array([steps]))
        expected = float(_turn(np.asarray(limit.params)[None])[0])
        text = f"dropout clipped at {threshold} sigma: turn by the flow with E psi'"
        claims.append(near(text, turn, expected, 0.03))
    return [*claims, _unequal(report)]


def _unequal(report: Report) -> Claim:
    """Thresholds that differ, against runs at two rates, extrapolated to zero."""
    xs = jnp.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.8]])
    start = jnp.array([[1.0, 0.8, 1.2], [0.5, -0.3, 0.6]])
    ys = xs @ (start[0] * start[1])
    clip = jc.HardClip(jnp.array([0.3, 2.0]))
    problem = jc.LabelNoise(
        diagonal, start, xs, ys, jc.Gaussian(1.0), residual_clip=clip
    )
    means, errors = [], []
    for lr in (0.1, 0.05):
        steps, runs = round(1 / lr**2), 4096 if report.quick else 16384
        a = _ends(report, problem, lr, steps, runs)
        a = a[:, 0] ** 2 - a[:, 1] ** 2
        means.append(a.mean(axis=0))
        errors.append(a.std(axis=0) / np.sqrt(runs))
    limit = solve(jc.ZeroLossFlow(), problem, NONE, 1.0, steps=np.array([1.0]))
    w = np.asarray(limit.params)
    extrapolated = 2 * means[1] - means[0]
    error = np.sqrt(4 * errors[1] ** 2 + errors[0] ** 2)
    away = np.abs(extrapolated - (w[0] ** 2 - w[1] ** 2)) / error
    text = "label noise, unequal thresholds: standard errors from the limit"
    return at_most(text, away.max(), 4.0)


def _trace(model: Any, params: Any, xs: Any) -> float:
    """The trace of the Hessian at zero loss, for one output."""
    slopes = jax.vmap(jax.grad(model), (None, 0))(params, xs)
    return float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slopes)) / len(xs))


def cost(report: Report) -> list[Claim]:
    """The flow without a Jacobian, against the number of parameters of a network."""
    widths = (30, 100) if report.quick else (30, 100, 315)
    xs = jr.normal(jr.key(report.seed), (8, 2))
    sizes, seconds, losses, traces = [], [], [], []
    for width in widths:
        model = eqx.nn.MLP(2, "scalar", width, 2, jnp.tanh, key=jr.key(report.seed))
        arrays, static = eqx.partition(model, eqx.is_inexact_array)

        def apply(arrays, x, static=static):
            return eqx.combine(arrays, static)(x)

        # Labels that the network gives already: it starts on the set.
        ys = jax.vmap(apply, (None, 0))(arrays, xs)
        problem = jc.LabelNoise(apply, arrays, xs, ys, jc.Gaussian(1.0))
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
    return [
        at_most("matrix-free flow of a network: its loss", max(losses), 1e-10),
        at_most("matrix-free flow: tr H against its start", max(traces), 0.99),
        at_most("matrix-free flow: exponent of the cost in parameters",
                _slope(sizes, seconds), 1.5),
    ]  # fmt: skip


if __name__ == "__main__":
    parts = (label_noise, dropout, selection, clipping, cost)
    reproduce("Check the claims about noisy gradient descent", "noisy_gd", 7, parts)
