"""The privacy of SGD with noise, counted by the library `dp-accounting`."""

from importlib import import_module
from typing import Any, Literal

from .._checks import count, fraction, positive

Accountant = Literal["pld", "rdp"]


def epsilon(
    noise_multiplier: float,
    *,
    delta: float,
    steps: int,
    sampling_rate: float = 1.0,
    accountant: Accountant = "pld",
) -> float:
    r"""The $\varepsilon$ of differentially private SGD at this $\delta$.

    Each step draws every example with the same probability and independently (Poisson
    sampling), clips the gradient of each, adds them up, and adds normal noise. The
    mechanism is that of Abadi et al. 2016, arXiv:1607.00133, and two data sets are
    neighbours where one has one example more.

    ```python
    eps = jaxclip.privacy.epsilon(1.1, delta=1e-5, steps=1000, sampling_rate=0.01)
    ```

    The noise multiplier $z$ is the noise of the **sum** over the threshold $c$. The
    number holds for the gradient of

    ```python
    jaxclip.PerExample("sum", noise_std=z * c)
    jaxclip.PerExample("mean", noise_std=z * c / n, denominator=n)
    ```

    with a rule that shortens to $c$, such as `HardClip(c)`, an `n` that is fixed in
    advance, and a fresh key or another `step` in every step. It does not hold for a
    mean over the number that was drawn, for batches of fixed size from a shuffled data
    set, or for thresholds that adapt to gradients without noise. With a `group` in
    [`jaxclip.clipped_grad`][] it is the group that is protected, and drawn.

    **Arguments:**

    - `noise_multiplier`: $z > 0$, dimensionless.
    - `delta`: $\delta$, between 0 and 1.
    - `steps`: how many steps are made.
    - `sampling_rate`: the probability with which a step sees an example, from 0 to 1
        and not 0; at 1 it sees all of them.
    - `accountant`: `"pld"` adds up the distribution of the privacy loss (Koskela et al.
        2020, arXiv:1906.03049; never too low, and close to the truth); `"rdp"` Rényi
        divergences (Mironov 2017, arXiv:1702.07476), a larger bound in a hundredth of
        the time.

    **Returns:**

    $\varepsilon$, a number that is not negative.

    **Raises:**

    A `ValueError` where a number is out of its range, and an `ImportError` without the
    extra `privacy`.
    """
    positive("noise_multiplier", noise_multiplier)
    _check(delta, steps, sampling_rate, accountant)
    return _epsilon(noise_multiplier, delta, steps, sampling_rate, accountant)


def noise_multiplier(
    epsilon: float,
    *,
    delta: float,
    steps: int,
    sampling_rate: float = 1.0,
    accountant: Accountant = "pld",
) -> float:
    r"""The least noise multiplier that keeps to this $\varepsilon$ at this $\delta$.

    ```python
    z = jaxclip.privacy.noise_multiplier(
        2.0, delta=1e-5, steps=1000, sampling_rate=0.01, accountant="rdp"
    )
    scope = jaxclip.PerExample("sum", noise_std=z * 0.5)  # for HardClip(0.5)
    ```

    **Arguments:**

    - `epsilon`: $\varepsilon > 0$.
    - `delta`, `steps`, `sampling_rate`, `accountant`: as of
        [`jaxclip.privacy.epsilon`][].

    **Returns:**

    $z$, to a thousandth of itself, and rather too large than too small.

    **Raises:**

    A `ValueError` where a number is out of its range, and an `ImportError` without the
    extra `privacy`.
    """
    positive("epsilon", epsilon)
    _check(delta, steps, sampling_rate, accountant)

    def spent(z: float, accountant: Accountant) -> float:
        return _epsilon(z, delta, steps, sampling_rate, accountant)

    # The fast bound first: the other needs no more noise, and starts from there.
    low, high = 0.0, 1.0
    while spent(high, "rdp") > epsilon:
        low, high = high, 2 * high
    low, high = _bisect(lambda z: spent(z, "rdp") > epsilon, low, high)
    if accountant == "rdp":
        return high
    low = high
    while spent(low, "pld") <= epsilon:
        low, high = 0.8 * low, low
    return _bisect(lambda z: spent(z, "pld") > epsilon, low, high)[1]


def _bisect(too_low: Any, low: float, high: float) -> tuple[float, float]:
    """Numbers within a thousandth of each other, between which a predicate changes."""
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return low, high


def _epsilon(
    z: float, delta: float, steps: int, rate: float, accountant: Accountant
) -> float:
    dp = _library()
    event = dp.GaussianDpEvent(float(z))
    if rate < 1:
        event = dp.PoissonSampledDpEvent(float(rate), event)
    count = dp.pld.PLDAccountant() if accountant == "pld" else dp.rdp.RdpAccountant()
    count.compose(dp.SelfComposedDpEvent(event, steps))
    return max(float(count.get_epsilon(float(delta))), 0.0)


def _check(delta: Any, steps: Any, sampling_rate: Any, accountant: Any) -> None:
    positive("delta", delta)
    fraction("delta", delta)
    count("steps", steps)
    positive("sampling_rate", sampling_rate)
    fraction("sampling_rate", sampling_rate)
    if accountant not in ("pld", "rdp"):
        raise ValueError(f'`accountant` must be "pld" or "rdp". Got {accountant!r}.')


def _library() -> Any:
    try:
        return import_module("dp_accounting")
    except ImportError as error:
        raise ImportError(
            "`jaxclip.privacy` counts by the package dp-accounting, which is not "
            "installed. Install it with the extra: pip install 'jaxclip[privacy]'."
        ) from error
