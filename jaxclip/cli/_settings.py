"""What `jaxclip sweep` runs: its flags, its file, and the problem that they state."""

import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np

from ..noise import (
    AbstractNoise,
    Cauchy,
    Contaminated,
    Exponential,
    Gaussian,
    Laplace,
    Rademacher,
    SparseSign,
    StudentT,
    Uniform,
)
from ..problem import LinearModel, Spectrum


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `jaxclip sweep` runs; each field is a flag, and a line of its file."""

    spectrum: Literal["isotropic", "power-law", "marchenko-pastur"] = "power-law"
    """The eigenvalues of the features' covariance."""
    dim: int = 200
    """Dimensions."""
    exponent: float = 0.5
    """Of the power law: eigenvalue j is j to the minus this."""
    ratio: float = 0.5
    """Of the Marchenko-Pastur law: features per row, in (0, 1)."""
    noise: Literal[
        "gaussian",
        "student-t",
        "cauchy",
        "laplace",
        "uniform",
        "rademacher",
        "sparse-sign",
        "contaminated",
        "exponential",
    ] = "student-t"
    """The law of the labels' noise."""
    scale: float = 1.0
    """Of the noise, in the label's unit: of Student's t and Cauchy noise the scale, of
    all others the standard deviation (of contaminated noise that of the bulk)."""
    df: float = 2.0
    """Degrees of freedom of Student's t noise."""
    prob: float = 0.1
    """How often sparse noise is not 0, and contaminated noise an outlier."""
    outlier_scale: float = 10.0
    """The standard deviation of contaminated noise's outliers."""
    start: float = 1.0
    """The excess risk of the start, in the label's squared unit."""
    steps: int = 2000
    """SGD steps, of one sample each."""
    lr_min: float = 0.02
    """The smallest learning rate, in units of 1 / trace of the covariance."""
    lr_max: float = 4.0
    """The largest."""
    lrs: int = 24
    """How many, evenly in the logarithm."""
    threshold_min: float = 0.05
    """The smallest threshold, in units of the features' norm."""
    threshold_max: float = 50.0
    """The largest."""
    thresholds: int = 24
    """How many, evenly in the logarithm."""
    seeds: int = 8
    """Runs of each setting. All settings see the same data."""
    seed: int = 0
    """Determines all that is random."""
    batch_size: int | None = None
    """Settings at once; by default what suits the memory."""
    double: bool = False
    """Compute in double precision, at half the speed."""


def words_of(path: Path) -> list[str]:
    """The flags that a TOML file stands for: `lr_min = 0.1` is `--lr-min 0.1`.

    **Raises:**

    A `ValueError` where there is no such file, or it is not TOML with one value a line.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"`config` {str(path)!r} cannot be read: {error}.") from error
    words = []
    for name, value in content.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, str | int | float):
            words += [f"--{flag}", str(value)]
        else:
            raise ValueError(
                f"`config` {str(path)!r} must have one number or word a line. Got "
                f"{name} = {value!r}."
            )
    return words


def problem_of(settings: Settings) -> LinearModel:
    """The problem: the error of its start is the same in every dimension."""
    spectrum = {
        "isotropic": lambda: Spectrum.isotropic(settings.dim),
        "power-law": lambda: Spectrum.power_law(settings.dim, settings.exponent),
        "marchenko-pastur": lambda: Spectrum.marchenko_pastur(
            settings.dim, settings.ratio
        ),
    }[settings.spectrum]()
    if not 0 < settings.start < np.inf:
        raise ValueError(f"`start` must be positive and finite. Got {settings.start}.")
    size = jnp.sqrt(2 * settings.start / spectrum.trace)
    start = size * jnp.sqrt(spectrum.multiplicity)
    return LinearModel(spectrum, _noise(settings), start)


def _noise(settings: Settings) -> AbstractNoise:
    scale, prob = settings.scale, settings.prob
    makers: dict[str, Callable[[], AbstractNoise]] = {
        "gaussian": lambda: Gaussian(scale),
        "student-t": lambda: StudentT(settings.df, scale),
        "cauchy": lambda: Cauchy(scale),
        "laplace": lambda: Laplace(scale),
        "uniform": lambda: Uniform(scale),
        "rademacher": lambda: Rademacher(scale),
        "sparse-sign": lambda: SparseSign(scale, prob),
        "contaminated": lambda: Contaminated(scale, settings.outlier_scale, prob),
        "exponential": lambda: Exponential(scale),
    }
    return makers[settings.noise]()
