"""The table that the explorer's page moves in, and the page's controls.

Everything is solved when the site is built; the page's script only looks up. In the
limit a batch of B whose examples are clipped one by one, at the rate g, is after k
steps where single examples at the rate g / B are after B k steps. So one program for
each kind of noise serves all batches.
"""

import html
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from picture import picture

import jaxclip as jc

# Of one run; the equation of the mean does not depend on it.
DIMENSION = 200
RATE = 0.5  # over the dimension
START = 1.0
# The last three are one program.
TAILS = np.array([10.0, 3.0, 1.0])
NAMES = (
    "Gaussian",
    "Laplace",
    "Student t, 10 degrees",
    "Student t, 3 degrees",
    "Cauchy, no variance",
)
# Five to a factor of ten, on the residual's scale; the last one is no clip.
THRESHOLDS = np.append(10 ** (np.arange(11) / 5 - 1), np.inf)
BATCHES = np.array([1.0, 8.0, 64.0])
RISKS = 10 ** (-np.arange(11) / 4)
# Steps over the dimension.
TIMES = np.array([0, 0.5, 1, 1.5, 2, *np.arange(3, 21)], float)


def table() -> dict[str, Any]:
    """All curves and criteria, to three digits."""
    risk, criterion, variance = (
        np.concatenate(each) for each in zip(*_solved(), strict=True)
    )
    rows = zip(NAMES, risk, criterion, variance, strict=True)
    return {
        "thresholds": _rounded(THRESHOLDS),
        "batches": BATCHES.astype(int).tolist(),
        "risks": _rounded(RISKS),
        "times": TIMES.tolist(),
        "noises": [_noise(*row) for row in rows],
    }


def _solved() -> Iterator[tuple[np.ndarray, ...]]:
    """For each kind of noise the risk, shape `(noises, batches, thresholds, times)`,
    the efficiency, shape `(noises, risks, thresholds)`, and the variance."""

    def student(tail: Any) -> Any:
        # Of variance 1, or where there is none of half the scale.
        has = tail > 2
        variance = tail / jnp.where(has, tail - 2, 1.0)
        return jc.StudentT(tail, jnp.where(has, variance**-0.5, 0.5))

    kinds = (lambda _: jc.Gaussian(1.0)), (lambda _: jc.Laplace(1.0)), student
    for make, tails in zip(kinds, (TAILS[:1], TAILS[:1], TAILS), strict=True):
        found = _grid(make, jnp.asarray(tails))
        yield tuple(np.asarray(each) for each in found)


def _grid(make: Any, tails: Any) -> Any:
    spectrum = jc.Spectrum.isotropic(DIMENSION)
    start = jnp.array([(2 * START) ** 0.5])

    def curve(tail, batch, threshold):
        noise = make(tail)
        problem = jc.LinearModel(spectrum, noise, start)
        # Where there is no risk without a clip, a number in its place: it is left out.
        none = jnp.isinf(threshold) & jnp.isinf(noise.variance)
        threshold = jnp.where(none, THRESHOLDS[-2], threshold)
        clip = jc.HardClip(threshold * spectrum.feature_norm)
        steps = batch * jnp.asarray(TIMES) * DIMENSION
        lr, limit = RATE / DIMENSION / batch, jc.RiskODE(rtol=1e-4)
        risk = jc.solve(problem, clip, lr, steps=steps, limit=limit).risk
        return jnp.where(none, jnp.nan, risk)

    def efficiency(tail, risk, threshold):
        m = jc.moments(jc.HardClip(threshold), make(tail), risk, 1.0)
        return m.mu**2 / m.second

    @jax.jit
    def all_of(tails, thresholds):
        curves = over(curve)(tails, jnp.asarray(BATCHES), thresholds)
        efficiencies = over(efficiency)(tails, jnp.asarray(RISKS), thresholds)
        variances = jax.vmap(lambda tail: jnp.asarray(make(tail).variance))(tails)
        return curves, efficiencies, variances

    return all_of(tails, jnp.asarray(THRESHOLDS))


def over(function: Any) -> Any:
    """Of three axes, one for each argument."""
    for place in (2, 1, 0):
        axes: list[int | None] = [None] * 3
        axes[place] = 0
        function = jax.vmap(function, axes)
    return function


def _noise(name: str, risk: Any, efficiency: Any, variance: Any) -> dict[str, Any]:
    """What the page has of one noise. Without a variance there is nothing to compare
    with but the best threshold."""
    wild = not np.isfinite(variance)
    if wild:
        efficiency[:, -1] = np.nan
        criterion = efficiency / np.nanmax(efficiency, axis=1, keepdims=True)
    else:
        # The variance of the residual is that of the noise and of what is not learnt.
        criterion = efficiency * (2 * RISKS[:, None] + variance)
    return {
        "name": name,
        "relative": wild,
        "risk": _rounded(risk),
        "criterion": _rounded(criterion),
    }


def _rounded(values: Any) -> Any:
    """Three digits; nothing where there is no number."""
    if isinstance(values, np.ndarray):
        return [_rounded(value) for value in values]
    return float(f"{values:.3g}") if np.isfinite(values) else None


def controls(found: dict[str, Any]) -> str:
    """The page's form, its table, and a picture for a browser without scripts."""
    names = "".join(
        f'<option value="{i}"{" selected" if i == 3 else ""}>{html.escape(name)}'
        "</option>"
        for i, name in enumerate(NAMES)
    )
    sliders = "".join(
        f'<label for="explorer-{name}">{text} <output id="explorer-{name}-value">'
        f'</output></label><input id="explorer-{name}" type="range" min="0" '
        f'max="{last}" step="1" value="{value}">'
        for name, text, last, value in (
            ("threshold", "Threshold on the residual", len(THRESHOLDS) - 1, 5),
            ("batch", "Examples in a batch", len(BATCHES) - 1, 0),
            ("level", "Excess risk of the criterion", len(RISKS) - 1, 4),
        )
    )
    data = json.dumps(found, separators=(",", ":")).replace("</", "<\\/")
    return (
        f'<form class="explorer" id="explorer-form" hidden>'
        f'<div class="explorer-controls">'
        f'<label for="explorer-noise">Noise of the labels</label>'
        f'<select id="explorer-noise">{names}</select>{sliders}</div>'
        f'<p id="explorer-text" aria-live="polite"></p><div class="explorer-charts">'
        f'<svg id="explorer-risk" role="img" viewBox="0 0 360 270"></svg>'
        f'<svg id="explorer-criterion" role="img" viewBox="0 0 360 270"></svg>'
        f"</div></form><noscript>{_still(found)}</noscript>"
        f'<script type="application/json" id="explorer-data">{data}</script>'
        f'<script src="../assets/explorer.js"></script>'
    )


def _still(found: dict[str, Any]) -> str:
    """One setting of it, as a picture."""
    student = found["noises"][3]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 3.4))
    left.semilogy(TIMES, student["risk"][0][5], label="clipped at 1")
    left.semilogy(TIMES, student["risk"][0][-1], ls="--", label="no clip")
    left.set(xlabel="steps / dimension", ylabel="excess risk")
    left.legend()
    right.semilogx(THRESHOLDS[:-1], student["criterion"][4][:-1])
    right.axhline(1, color="0.5", lw=1)
    right.set(xlabel="threshold on the residual", ylabel="criterion at the risk 0.1")
    return picture(
        figure,
        "Student's noise of 3 degrees of freedom, single examples, a threshold of 1: "
        "the risk ends below that without a clip, and the criterion is above 1 from "
        "small thresholds on.",
        "One setting. With JavaScript this page has sliders.",
    )
