"""Flags of the commands: declared once, for the parser, the help and the errors."""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, get_type_hints

# What asks for help; the second for all there is to say.
HELP, HELP_ALL = ("-h", "--help"), "--help-all"


def flag(
    default: Any,
    text: str,
    *,
    metavar: str = "N",
    more: str = "",
    positional: bool = False,
) -> Any:
    """A field of a dataclass of flags.

    **Arguments:**

    - `default`: its value where it is not given.
    - `text`: what it is, in as few words as fit on the line of a screen.
    - `metavar`: what stands for its value in the help.
    - `more`: what `--help-all` adds.
    - `positional`: whether it is given by its place, without its name.
    """
    about = {"text": text, "metavar": metavar, "more": more, "positional": positional}
    return dataclasses.field(default=default, metadata=about)


def parsed_as(tyro: Any, flags: Any, *, everything: bool) -> Any:
    """A class with the same fields, whose annotations tell tyro what help says.

    **Arguments:**

    - `flags`: a dataclass, each field a `flag`.
    - `everything`: whether help says what is said with `--help-all`.
    """
    types = get_type_hints(flags)
    fields = []
    for field in dataclasses.fields(flags):
        about = field.metadata
        text = f"{about['text']} {about['more']}" if everything else about["text"]
        looks: dict[str, Any] = {"help": text.strip()}
        # A switch has no value.
        if types[field.name] is not bool:
            looks["metavar"] = about["metavar"]
        kind: Any = Annotated[types[field.name], tyro.conf.arg(**looks)]
        if about["positional"]:
            kind = tyro.conf.Positional[kind]
        fields.append((field.name, kind, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(flags.__name__, fields, frozen=True)


def names_of(flags: Iterable[Any]) -> set[str]:
    """The names of all flags, as they are written."""
    found = {*HELP, HELP_ALL}
    for cls in flags:
        named = [f for f in dataclasses.fields(cls) if not f.metadata["positional"]]
        for field in named:
            name = field.name.replace("_", "-")
            found |= {f"--{name}"}
            # tyro makes a pair of what is true or false.
            found |= {f"--no-{name}"} if isinstance(field.default, bool) else set()
    return found


def check_command(words: Sequence[str], commands: Iterable[str]) -> None:
    """Refuses words that do not begin with a command, in one line."""
    known = list(commands)
    if not words:
        refuse(f"A command is wanted: {', '.join(known)}. See `jaxclip --help`.")
    first = words[0]
    if first in known or first in (*HELP, HELP_ALL) or first.startswith("--tyro-"):
        return
    hint = _nearest(first, known) or f" There are {', '.join(known)}."
    refuse(f"There is no command {first!r}.{hint} See `jaxclip --help`.")


def check_flags(command: str, words: Sequence[str], known: set[str]) -> None:
    """Refuses a word that looks like a flag and is none, in one line."""
    for word in words:
        name = word.split("=")[0]
        # Underscores are as good as hyphens.
        is_flag = re.fullmatch(r"--?[A-Za-z][\w-]*", name) is not None
        if is_flag and name.replace("_", "-") not in known:
            hint = _nearest(name, sorted(known))
            refuse(
                f"`{command}` has no option {name}.{hint} "
                f"See `jaxclip {command} --help`."
            )


def in_one_line(parse: Callable[[], Any]) -> Any:
    """Runs a parser, and makes one line of what it prints of words that are wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as end:
        if end.code == 2:
            refuse(_sentence(said.getvalue()))
        print(said.getvalue(), end="", file=sys.stderr)
        raise


def refuse(message: str) -> None:
    """Ends the program as a shell expects it of words that are wrong."""
    print(f"jaxclip: {message}", file=sys.stderr)
    raise SystemExit(2)


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]}?" if near else ""


def _sentence(box: str) -> str:
    """The first paragraph in a box of a parser's."""
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()]
    kept: list[str] = []
    for line in lines:
        is_rule = not line.strip("─")
        if is_rule and kept:
            break
        # The title is framed by rules.
        if not is_rule and "─" not in line:
            kept.append(line)
    return " ".join(kept) or "These words are no command. See `jaxclip --help`."
