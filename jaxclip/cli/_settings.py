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
from ._flags import flag


@dataclasses.dataclass(frozen=True)
class AdviseFlags:
    """What `jaxclip advise` is told."""

    data: Path | None = flag(  # noqa: RUF009  a frozen field
        None,
        "A file with a table, of almost any kind.",
        metavar="[TABLE]",
        more="Text in any dialect (.csv, .tsv, .txt, .data ...), JSON lines, Excel, "
        "Parquet or .npz, also compressed. Without one, a real "
        "table that ships with scikit-learn is used: the size of the worst cell nuclei "
        "of 569 tumours, from the mean measurements of their nuclei.",
        positional=True,
    )
    target: str | None = flag(
        None, "The column to predict; else the last.", metavar="NAME"
    )
    features: int | None = flag(
        None,
        "Random features in place of the columns.",
        more="So many features tanh(XW), with a random matrix W.",
    )
    steps: int | None = flag(
        None,
        "The length of a run, one row a step.",
        more="One pass by default, but at least 2,000 and at most 20,000 steps.",
    )
    runs: int | None = flag(
        None,
        "Runs of each setting.",
        more="In each split of the rows; by default as many as the answer needs.",
    )
    seed: int = flag(0, "Determines all that is random.")
    out: Path = flag(  # noqa: RUF009  a frozen field
        Path("jaxclip-advice"),
        "Where to write .json and .png.",
        metavar="NAME",
        more="This name with .json (the numbers) and .png (the figure) added.",
    )


@dataclasses.dataclass(frozen=True)
class SweepFiles:
    """What `jaxclip sweep` reads and writes."""

    config: Path | None = flag(  # noqa: RUF009  a frozen field
        None,
        "A TOML file of such settings.",
        metavar="FILE",
        more="One a line, as in `lr_min = 0.1`. Where a flag is given too, it wins.",
    )
    out: Path = flag(  # noqa: RUF009  a frozen field
        Path("jaxclip-sweep"),
        "Where to write the table.",
        metavar="NAME",
        more="A folder of this name (its table.zarr holds every run), and this name "
        "with .json (the best settings) and .png (the figure) added.",
    )


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `jaxclip sweep` runs; each field is a flag, and a line of its file."""

    spectrum: Literal["isotropic", "power-law", "marchenko-pastur"] = flag(
        "power-law",
        "isotropic, power-law or marchenko-pastur.",
        metavar="LAW",
        more="The law of the eigenvalues of the features' covariance.",
    )
    dim: int = flag(200, "Dimensions.")
    exponent: float = flag(
        0.5,
        "Of the power law.",
        metavar="X",
        more="Eigenvalue j is j to the minus this.",
    )
    ratio: float = flag(
        0.5, "Of Marchenko-Pastur: features a row.", metavar="X", more="In (0, 1)."
    )
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
    ] = flag(
        "student-t",
        "gaussian, student-t, cauchy, laplace, uniform, rademacher, sparse-sign, "
        "contaminated or exponential.",
        metavar="LAW",
        more="The law of the labels' noise.",
    )
    scale: float = flag(
        1.0,
        "Of the noise, in the label's unit.",
        metavar="X",
        more="Of Student's t and Cauchy noise the scale, of all others the standard "
        "deviation (of contaminated noise that of the bulk).",
    )
    df: float = flag(2.0, "Of Student's t: degrees of freedom.", metavar="X")
    prob: float = flag(
        0.1,
        "How often there is noise, or an outlier.",
        metavar="X",
        more="How often sparse noise is not 0, and contaminated noise an outlier.",
    )
    outlier_scale: float = flag(
        10.0,
        "Standard deviation of outliers.",
        metavar="X",
        more="Contaminated noise's.",
    )
    start: float = flag(
        1.0,
        "Excess risk of the start.",
        metavar="X",
        more="In the label's squared unit.",
    )
    steps: int = flag(2000, "SGD steps.", more="Of one sample each.")
    lr_min: float = flag(
        0.02,
        "The least learning rate, times the trace.",
        metavar="X",
        more="In units of 1 / trace of the covariance.",
    )
    lr_max: float = flag(4.0, "The largest.", metavar="X")
    lrs: int = flag(24, "How many.", more="Evenly in the logarithm.")
    threshold_min: float = flag(
        0.05,
        "The least threshold.",
        metavar="X",
        more="In units of the features' norm.",
    )
    threshold_max: float = flag(50.0, "The largest.", metavar="X")
    thresholds: int = flag(24, "How many.", more="Evenly in the logarithm.")
    seeds: int = flag(8, "Runs of each setting.", more="All see the same data.")
    seed: int = flag(0, "Determines all that is random.")
    batch_size: int | None = flag(
        None, "Settings at once.", more="By default what suits the memory."
    )
    double: bool = flag(
        False, "Compute in double precision.", more="At half the speed."
    )


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
