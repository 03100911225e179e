"""The claims of `reproduce_high_dim.py` about momentum, weight decay and DP-SGD.

Not a program of its own.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from _claims import Claim, Report, at_most, of

import jaxclip as jc

# In t = k / N: where runs are compared with the equation.
_TIMES = np.arange(1, 9) / 2
_NOISES = {
    "Gaussian": jc.Gaussian(1.0),
    "Laplace": jc.Laplace(1.0),
    "Student, 5 degrees": jc.StudentT(5.0, 0.7),
}


def momentum(report: Report) -> list[Claim]:
    """How far one run is from the equation, in three dimensions: the root mean square
    over runs and times falls like one over the root of the dimension."""
    sizes = (100, 400) if report.quick else (100, 400, 1600)
    cases = _cases(quick=report.quick)
    claims, table = [], {}
    for name, (spectrum, noise, clip, update) in cases.items():
        errors = []
        for size in sizes:
            runs = (32 if report.quick else 64) if size < 1600 else 24
            keys = jr.split(jr.key(report.seed), runs)
            errors.append(_deviation(spectrum(size), noise, clip, update, keys))
        slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
        table[name] = errors
        # Of so few sizes and runs the slope itself has an error of about .05.
        half = 0.2 if report.quick else 0.1
        text = f"{name}: slope of one run's deviation over the dimension"
        claims.append(Claim(text, slope, -0.5 - half, -0.5 + half))
    report.save("momentum", sizes=sizes, **table)
    return of("derived here", [*claims, *_nesterov()])


def _cases(quick: bool) -> dict[str, Any]:
    """Spectrum, noise, threshold and update; the fewest in quick mode."""
    spectra = {
        "isotropic": jc.Spectrum.isotropic,
        "four eigenvalues": lambda size: jc.Spectrum(
            jnp.array([1.0, 0.5, 0.25, 0.1]), [size // 10, size // 5, 3 * size // 10,
                                               2 * size // 5]
        ),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for spectrum_name, spectrum in spectra.items():
        for noise_name, noise in _NOISES.items():
            for clip in (0.7, np.inf):
                where = f"{spectrum_name}, {noise_name}, c = {clip}"
                found[f"critical momentum, {where}"] = spectrum, noise, clip, _critical
    where = spectra["four eigenvalues"], _NOISES["Laplace"], 0.7
    ridge = {"weight_decay": jc.algorithm.WeightDecay(0.3, clipped=True)}
    noisy = {"scope": jc.PerExample(noise_std=0.35)}
    found["momentum of .9"] = *where, _fixed
    found["momentum of .9 and decay"] = *where, _with(_fixed, {"weight_decay": 0.3})
    found["a clipped ridge"] = *where, _with(_plain, ridge)
    found["the noise of DP-SGD"] = *where, _with(_plain, noisy)
    return dict(list(found.items())[::5]) if quick else found


def _critical(n: float) -> dict[str, Any]:
    return {"momentum": 1 - 2 / n, "rate": 1.5 / n**2}


def _fixed(n: float) -> dict[str, Any]:
    return {"momentum": 0.9, "rate": 0.05 / n}


def _plain(n: float) -> dict[str, Any]:
    return {"rate": 0.5 / n}


def _with(base: Any, more: dict[str, Any]) -> Any:
    return lambda n: {**base(n), **more}


def _deviation(
    spectrum: jc.Spectrum, noise: Any, c: float, update: Any, keys: Any
) -> float:
    """The root mean square deviation of the risk of a run from the equation."""
    n = float(spectrum.intrinsic_dimension)
    how = dict(update(n))
    lr = how.pop("rate")
    start = jnp.sqrt(2 * spectrum.multiplicity / spectrum.trace)
    problem = jc.LinearModel(spectrum, noise, start)
    clip = jc.HardClip(c * spectrum.feature_norm)
    every = int(n / 2)
    ode = jc.solve(problem, clip, lr, steps=every * 2.0 * _TIMES, **how).risk
    risk = _runs(problem, clip, lr, how, every, keys)[:, 1:]
    return float(np.sqrt(np.mean((np.asarray(risk) - np.asarray(ode)) ** 2)))


@eqx.filter_jit
def _runs(problem, clip, lr, how, every, keys):
    def one(key):
        steps = every * len(_TIMES)
        return jc.simulate(
            problem, clip, lr, steps=steps, every=every, key=key, **how
        ).risk

    # One after the other: the features of all of them would not fit into a cache.
    return jax.lax.map(one, keys)


def _nesterov() -> list[Claim]:
    """The difference of the two kinds of momentum, without a clip, against the exact
    mean in 500 dimensions."""
    lam, dim = np.array([1.0, 0.2]), np.array([250, 250])
    n, sigma, beta = 300.0, 0.5, 0.95
    lr, count = 0.03 / n, int(12 * n)
    problem = jc.LinearModel(jc.Spectrum(lam, dim), jc.Gaussian(sigma), np.ones(2))
    steps = np.linspace(0, count, 13)
    solved, exact = [], []
    for nesterov in (False, True):
        kind = jc.algorithm.Momentum(beta, nesterov)
        ode = jc.solve(problem, jc.Identity(), lr, steps=steps, momentum=kind)
        solved.append(np.asarray(ode.risk))
        mean = _exact(lam, dim, sigma, lr, beta, nesterov, count)
        exact.append(mean[steps.astype(int)])
    gap, wanted = solved[1] / solved[0] - 1, exact[1] / exact[0] - 1
    off = np.max(np.abs(gap - wanted)) / np.max(np.abs(wanted))
    text = "Nesterov's variant less the heavy ball: the equations' error in it"
    return [at_most(text, off, 0.1)]


def _exact(
    lam: np.ndarray, dim: np.ndarray, sigma: float, lr: float, beta: float,
    nesterov: bool, count: int,
) -> np.ndarray:  # fmt: skip
    """The mean risk of unclipped runs, exact in every dimension."""
    S = np.zeros((len(lam), 2, 2))
    S[:, 0, 0] = 1.0
    T = np.array([[1.0, -lr * (beta**2 if nesterov else beta)], [0.0, beta]])
    V = np.array([-lr * ((1 + beta) if nesterov else 1.0), 1.0])
    risks = [lam @ S[:, 0, 0] / 2]
    for _ in range(count):
        cross = lam[:, None] * S[:, 0]
        square = lam * dim * (2 * risks[-1] + sigma**2) + 2 * lam**2 * S[:, 0, 0]
        mixed = np.einsum("ab,jb,c->jac", T, cross, V)
        S = T @ S @ T.T + mixed + mixed.transpose(0, 2, 1)
        S = S + square[:, None, None] * np.outer(V, V)
        risks.append(lam @ S[:, 0, 0] / 2)
    return np.array(risks)
