"""The command line."""

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.random as jr
import numpy as np

from ..advice import Table, advise, prepare
from ._doctor import doctor
from ._flags import (
    HELP_ALL,
    check_command,
    check_flags,
    in_one_line,
    names_of,
    parsed_as,
)
from ._read import read_table
from ._settings import AdviseFlags, Settings, SweepFiles, words_of
from ._sweep import Summary, run as run_sweep

_EXTRA = "The command line needs an extra: `pip install 'jaxclip[cli]'`."
_ABOUT = """The dynamics of SGD with gradient clipping.

Example: jaxclip advise homes.csv --target price

A command has a --help of its own, and a --help-all with more words."""
# The commands, in the order of the help, and what each is told.
COMMANDS: dict[str, tuple[Any, ...]] = {
    "advise": (AdviseFlags,),
    "sweep": (Settings, SweepFiles),
    "doctor": (),
    "completion": (),
}


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    **Arguments:**

    - `arguments`: the words after `jaxclip`; those of the shell by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        import tyro
    except ImportError as error:
        # Who has no extra may want to know what there is.
        if words == ["doctor"]:
            return _doctor()
        raise SystemExit(f"{_EXTRA} ({error})") from error
    check_command(words, COMMANDS)
    everything = HELP_ALL in words
    try:
        words = _with_file(["--help" if w == HELP_ALL else w for w in words])
        if words[0] in COMMANDS:
            check_flags(words[0], words[1:], names_of(COMMANDS[words[0]]))
        app = _app(tyro, everything)
        # What is to be run comes back, so that it prints to where it means to.
        run = in_one_line(
            lambda: app.cli(prog="jaxclip", args=words, description=_ABOUT)
        )
        run()
    except (ValueError, OSError) as error:
        raise SystemExit(f"jaxclip: {error}") from error
    except ImportError as error:
        raise SystemExit(f"{_EXTRA} ({error})") from error


def _app(tyro: Any, everything: bool) -> Any:
    """The parser of all commands, each of which returns what is to be run."""
    app = tyro.extras.SubcommandApp()
    classes = {
        cls: parsed_as(tyro, cls, everything=everything)
        for flags in COMMANDS.values()
        for cls in flags
    }
    kinds = {
        cls: Annotated[own, tyro.conf.arg(name="")] for cls, own in classes.items()
    }

    start = {cls: own() for cls, own in classes.items()}
    of_advise, of_sweep, of_files = map(kinds.get, (AdviseFlags, Settings, SweepFiles))
    shells = tyro.conf.Positional[Literal["bash", "zsh", "fish"]]

    def advise(
        flags: of_advise = start[AdviseFlags],  # pyright: ignore[reportInvalidTypeForm]  runtime type
    ):
        """Tells whether to clip on a data set, at what threshold, and what follows.

        Example: jaxclip advise homes.csv --target price
        """
        return partial(_advise, _as(AdviseFlags, flags))

    def sweep(
        settings: of_sweep = start[Settings],  # pyright: ignore[reportInvalidTypeForm]  as above
        files: of_files = start[SweepFiles],  # pyright: ignore[reportInvalidTypeForm]  as above
    ):
        """Runs clipped SGD over a grid of learning rates and thresholds.

        On least squares with Gaussian features; run again, it goes on where it was.

        Example: jaxclip sweep --noise cauchy --lrs 12
        """
        return partial(_sweep, _as(Settings, settings), _as(SweepFiles, files).out)

    def doctor():
        """Prints versions, devices and settings, and tests what is installed.

        Example: jaxclip doctor
        """
        return _doctor

    def completion(
        shell: shells,  # pyright: ignore[reportInvalidTypeForm]  as above
    ):
        """Prints what lets a shell complete words: of bash, zsh or fish.

        Example: source <(jaxclip completion bash)
        """
        words = ["--tyro-write-completion", shell, "-"]
        return partial(app.cli, prog="jaxclip", args=words)

    for command in (advise, sweep, doctor, completion):
        app.command(name=command.__name__)(command)
    return app


def _as(cls: Any, parsed: Any) -> Any:
    """What was parsed, as the class that it stands for."""
    return cls(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(cls)})


def _doctor() -> None:
    if not doctor():
        raise SystemExit(1)


def _advise(flags: AdviseFlags) -> None:
    # A program may choose what a library must not: the limits need the digits.
    jax.config.update("jax_enable_x64", True)
    table, name = _load(flags.data, flags.target)
    # Before the work: a name that cannot be written to must not cost minutes.
    files = _outputs(flags.out)
    shape = f"{len(table.y):,} rows, {len(table.columns)} columns"
    print(f"{name}: {table.target!r} from {shape}")
    advice = advise(
        table,
        steps=flags.steps,
        runs=flags.runs,
        features=flags.features,
        key=jr.key(flags.seed),
        progress=_progress,
    )
    print(f"\n{advice}\n")
    _write(files, advice, name, flags.seed)


def _sweep(settings: Settings, out: Path) -> None:
    files = _outputs(out)
    jax.config.update("jax_enable_x64", settings.double)
    found, problem = run_sweep(settings, out)
    summary = Summary.of(settings, found, problem)
    _write_files(files, summary.to_dict(), summary.figure)
    print(f"Table:   {out / 'table.zarr'}")


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
