"""The command line."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.random as jr
import numpy as np

from ..advice import Table, advise, prepare
from ._read import read_table
from ._settings import Settings, words_of
from ._sweep import Summary, run as run_sweep

_EXTRA = "The command line needs an extra: `pip install 'jaxclip[cli]'`."


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    **Arguments:**

    - `arguments`: the words after `jaxclip`; those of the shell by default.
    """
    try:
        import tyro
    except ImportError as error:
        raise SystemExit(f"{_EXTRA} ({error})") from error

    app = tyro.extras.SubcommandApp()
    app.command(name="advise")(_advise_command(tyro))
    app.command(name="sweep")(_sweep_command(tyro))
    try:
        app.cli(
            prog="jaxclip",
            args=_with_file(sys.argv[1:] if arguments is None else arguments),
            description="The dynamics of SGD with gradient clipping.",
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"jaxclip: {error}") from error
    except ImportError as error:
        raise SystemExit(f"{_EXTRA} ({error})") from error


def _advise_command(tyro: Any):
    positional = tyro.conf.Positional[Path | None]

    def command(
        data: positional = None,  # pyright: ignore[reportInvalidTypeForm]  runtime type
        target: str | None = None,
        features: int | None = None,
        steps: int | None = None,
        runs: int | None = None,
        seed: int = 0,
        out: Path = Path("jaxclip-advice"),
    ) -> None:
        """Tells whether to clip on a data set, at what threshold, and what follows.

        Args:
            data: A table: text in any dialect (.csv, .tsv, .txt, .data ...), JSON
                lines, Excel, Parquet or .npz, also compressed. Without one, a real
                table that ships with scikit-learn is used: the size of the worst cell
                nuclei of 569 tumours, from the mean measurements of their nuclei.
            target: The column to predict; the last one by default.
            features: Use so many random features tanh(XW) in place of the columns.
            steps: The length of a run, one row a step; one pass by default, but at
                least 2,000 and at most 20,000 steps.
            runs: How many runs of each setting in each split of the rows; by default
                as many as the answer needs.
            seed: Determines all that is random.
            out: Where to write: this name with .json (the numbers) and .png (the
                figure) added.
        """
        # A program may choose what a library must not: the limits need the digits.
        jax.config.update("jax_enable_x64", True)
        table, name = _load(data, target)
        # Before the work: a name that cannot be written to must not cost minutes.
        files = _outputs(out)
        shape = f"{len(table.y):,} rows, {len(table.columns)} columns"
        print(f"{name}: {table.target!r} from {shape}")
        advice = advise(
            table,
            steps=steps,
            runs=runs,
            features=features,
            key=jr.key(seed),
            progress=_progress,
        )
        print(f"\n{advice}\n")
        _write(files, advice, name, seed)

    return command


def _sweep_command(tyro: Any):
    flags = Annotated[Settings, tyro.conf.arg(name="")]
    defaults = Settings()

    def command(
        settings: flags = defaults,  # pyright: ignore[reportInvalidTypeForm]  as above
        config: Path | None = None,
        out: Path = Path("jaxclip-sweep"),
    ) -> None:
        """Runs clipped SGD over a grid of learning rates and thresholds.

        The problem is least squares on Gaussian features. A command that was killed
        goes on where it was when it is run again.

        Args:
            settings: What to run.
            config: A TOML file with such settings, one a line, as in `lr_min = 0.1`.
                Where a flag is given too, it wins.
            out: Where to write: a folder of this name (its table.zarr holds every
                run), and this name with .json (the best settings) and .png (the
                figure) added.
        """
        del config  # its lines are among the flags already
        files = _outputs(out)
        jax.config.update("jax_enable_x64", settings.double)
        found, problem = run_sweep(settings, out)
        summary = Summary.of(settings, found, problem)
        _write_files(files, summary.to_dict(), summary.figure)
        print(f"Table:   {out / 'table.zarr'}")

    return command


def _with_file(words: list[str]) -> list[str]:
    """The words with those of the file that `--config` names, before the user's own,
    which win."""
    if words[:1] != ["sweep"]:
        return words
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    found, own = parser.parse_known_args(words[1:])
    if found.config is None:
        return words
    return ["sweep", *words_of(found.config), *own]


def _load(path: Path | None, target: str | None) -> tuple[Table, str]:
    if path is not None:
        return prepare(read_table(path), target), path.name
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer(as_frame=True)
    frame = bunch.frame
    columns = [name for name in frame.columns if str(name).startswith("mean ")]
    target = "worst area" if target is None else target
    kept = [*columns, target] if target in frame.columns else columns
    return prepare(frame[list(dict.fromkeys(kept))], target), "breast cancer (sklearn)"


def _progress(iterable: Iterable[Any], label: str) -> Iterable[Any]:
    from tqdm import tqdm

    # A dumb terminal or a log gets the finished bars only.
    return tqdm(iterable, desc=f"{label:>20}", mininterval=0.5, file=sys.stderr)


def _outputs(out: Path) -> tuple[Path, Path]:
    """The files of the numbers and of the figure, in a directory that exists."""
    if not out.name:
        raise ValueError(f"`out` must be the name of a file. Got {str(out)!r}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"`out` must be where a file can be: {error}.") from error
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"`out` is in {str(out.parent)!r}, which is not writable.")
    return out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.png")


def _write(files: tuple[Path, Path], advice: Any, name: str, seed: int) -> None:
    content = {
        "data": name,
        "seed": seed,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        **advice.to_dict(),
    }
    title = f"{name}, {advice.table.target}"
    _write_files(files, content, lambda: advice.plot(title))


def _write_files(
    files: tuple[Path, Path], content: dict[str, Any], draw: Callable[[], Any]
) -> None:
    """Writes the numbers first: they are what a failing figure must not lose."""
    numbers, picture = files
    numbers.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    with warnings.catch_warnings():
        # A font without some glyph of a column's name is no reason to stop.
        warnings.simplefilter("ignore", UserWarning)
        draw().savefig(picture, dpi=130)
    print(f"Numbers: {numbers}\nFigure:  {picture}")
