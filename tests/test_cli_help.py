"""What the command line says of itself: help on one screen, errors in one line, and
what lets a shell complete words."""

import re
import shutil
import subprocess

import pytest

from helpers import asked_settings
from jaxclip.cli import _main
from jaxclip.cli._flags import names_of


def said(words: str, capsys, monkeypatch) -> str:
    """What help prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        _main.main(words.split())
    assert end.value.code in (0, None)
    printed = capsys.readouterr()
    assert not printed.err
    return printed.out


@pytest.mark.parametrize("command", ["", *_main.COMMANDS])
def test_help_fits_one_screen(command, capsys, monkeypatch):
    text = said(f"{command} --help", capsys, monkeypatch)
    # A line that is longer is wrapped by the terminal.
    lines = sum(1 + max(len(line) - 1, 0) // 80 for line in text.splitlines())
    assert lines <= 40
    assert re.search(rf"Example: .*\bjaxclip {command}", text)
    if not command:
        assert all(name in text for name in _main.COMMANDS)
        return
    flags = names_of(_main.COMMANDS[command]) - {"-h", "--help", "--help-all"}
    assert all(re.search(rf"{name}\b", text) for name in flags)


def test_help_all_has_all_words(capsys, monkeypatch):
    short = said("sweep --help", capsys, monkeypatch)
    whole = " ".join(said("sweep --help-all", capsys, monkeypatch).split())
    detail = "1 / trace of the covariance"
    assert detail in whole and detail not in short
    assert "scikit-learn" in said("advise --help-all", capsys, monkeypatch)


WRONG = {
    "": "A command is wanted: advise, sweep, doctor, completion.",
    "advice": "There is no command 'advice'. Did you mean advise?",
    "zzz": "There is no command 'zzz'. There are advise, sweep, doctor, completion.",
    "advise --speed 3": "`advise` has no option --speed. Did you mean --seed?",
    "sweep --treshold-min=3": "no option --treshold-min. Did you mean --threshold-min?",
    "sweep --target a": "`sweep` has no option --target.",
    "doctor --fast": "`doctor` has no option --fast.",
    "advise --steps many": "Error parsing --steps",
    "sweep --noise white": "white",
    "completion tcl": "tcl",
    "completion": "shell",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as end:
        _main.main(words.split())
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("jaxclip: ")
    assert printed.err.count("\n") == 1
    assert WRONG[words] in printed.err
    assert not set("│╭╰─") & set(printed.err)


def test_a_line_of_a_file_that_is_none(tmp_path, capsys):
    (tmp_path / "a.toml").write_text("stepz = 3\n")
    with pytest.raises(SystemExit) as end:
        _main.main(["sweep", "--config", str(tmp_path / "a.toml")])
    assert end.value.code == 2
    assert "no option --stepz. Did you mean --steps?" in capsys.readouterr().err


def test_underscores_are_hyphens(monkeypatch):
    asked = asked_settings(monkeypatch, ["sweep", "--lr_min", "0.5", "--no-double"])
    assert asked.lr_min == 0.5


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_names_the_commands(shell, capsys, monkeypatch):
    text = said(f"completion {shell}", capsys, monkeypatch)
    assert "jaxclip" in text
    for word in (*_main.COMMANDS, "threshold-min"):
        assert word in text


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path, capsys, monkeypatch):
    script = tmp_path / "completion.bash"
    script.write_text(said("completion bash", capsys, monkeypatch))

    def bash(code: str) -> str:
        command = f"source {script}; {code}"
        run = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, check=True
        )
        assert not run.stderr
        return run.stdout

    # complete -o ... -F NAME jaxclip
    registered = bash("complete -p jaxclip").split()
    assert registered[-1] == "jaxclip"
    function = registered[registered.index("-F") + 1]

    def completed(*words: str) -> list[str]:
        line = " ".join(words)
        return bash(
            f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; "
            f"COMP_POINT={len(line)}; {function} jaxclip {words[-1]} {words[-2]}; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        ).split()

    assert completed("jaxclip", "swe") == ["sweep"]
    assert completed("jaxclip", "sweep", "--threshold-mi") == ["--threshold-min"]
