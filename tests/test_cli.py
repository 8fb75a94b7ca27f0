"""The command line: quick help, one sentence for every error, JSON everywhere."""

import json
import re
import subprocess
import sys
import types
from importlib.metadata import version

import pytest

import foveate
from foveate import cli
from foveate.core.errors import FoveateError

COMMANDS = [
    ["ask"],
    ["info"],
    ["train"],
    ["train-method", "covipal"],
    ["train-method", "dymu"],
    ["train-method", "relevance"],
    ["convert"],
    ["bench", "encoders"],
]


@pytest.fixture
def run(capsys):
    """Run a line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def info_raises(monkeypatch):
    """Put a command that fails in a chosen way behind `foveate info`."""

    def install(error: BaseException) -> None:
        def info(json: bool = False) -> None:
            raise error

        module = types.ModuleType("failing_command")
        module.info = info
        monkeypatch.setitem(sys.modules, "failing_command", module)
        monkeypatch.setitem(cli.TARGETS, "info", "failing_command:info")

    return install


@pytest.mark.parametrize(
    ("group", "commands"),
    [
        ([], ("ask", "info", "train", "train-method", "convert", "bench")),
        (["train-method"], ("covipal", "dpn", "dymu", "flash", "focusui", "ph-reg", "relevance", "specvlm")),
    ],
    ids=["foveate", "train-method"],
)
def test_help_lists_every_command_without_importing_torch(group, commands):
    code = (
        f"import sys, foveate_cli; sys.argv = {['foveate', *group, '--help']}; code = foveate_cli.main();"
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in commands:
        assert re.search(rf"^\W*{command}\s", done.stdout, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_a_command_shows_its_options_and_examples(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert "--json" in out
    assert f"foveate {' '.join(command)} " in out[out.index("Examples") :]


def test_no_command_shows_help(run):
    code, out, _ = run()
    assert code == 0
    assert "Usage: foveate" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("methods",),
        ("methods", "divprune"),
        ("methods", "*prune*", "--json"),
        ("flops", "--papers"),
        ("flops", "--help"),
        (),
    ],
    ids=" ".join,
)
def test_nothing_slow_is_imported(arguments):
    code = f"""
import sys, foveate_cli
sys.argv = ["foveate", *{arguments!r}]
assert foveate_cli.main() == 0
print(sorted({{"torch", "transformers", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_foveate_and_one_version():
    command = [sys.executable, "-X", "importtime", "-m", "foveate", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"foveate {version('foveate')}"
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "foveate.cli" in imported and "torch" not in imported
    assert foveate.__version__ == version("foveate")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["aks"], "Did you mean 'ask'"),
        (["ask"], "Missing argument"),
        (["ask", "image.png", "What?", "--colour"], "--colour"),
        (["ask", "no-such-image.png", "What is the total?"], "no-such-image.png"),
        (["info", "no-such-model"], "no-such-model"),
        (["train", "no-such-recipe.yaml"], "no-such-recipe.yaml"),
        (["bench", "encoder"], "Did you mean 'encoders'"),
        (
            ["train-method", "fastv"],
            "nothing trains 'fastv'; possible are adaptvision, covipal, dpn, dymu, flash, focusui, ph-reg",
        ),
        (
            ["train-method", "covipal", "-o", "x", "--pressure", "1"],
            "--pressure is not an option of covipal; it belongs to dpn.",
        ),
        (["train-method", "flash", "-o", "x", "--compressor", "pool"], "it belongs to specvlm"),
        (["train-method", "specvlm", "-o", "x", "--guesses", "3"], "it belongs to flash"),
        (["train-method", "dpn", "-o", "x", "--guided", "0.5"], "it belongs to covipal"),
        (["train-method", "dymu", "-o", "x", "--resume"], "No such option: --resume"),
        (["train-method", "covipal", "--colour"], "No such option: --colour"),
        (["train-method", "covipal"], "Missing option '--output'"),
        (
            ["train-method", "covipal", "-o", "x", "--layers", "two"],
            "--layers 'two' must be comma-separated whole numbers",
        ),
        (["train-method", "covipal", "-o", "x", "--sides", "96"], "must be the shortest and the longest side"),
        (["train-method", "focusui", "-o", "no/x"], "there is no folder no"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, arguments, said):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err

    code, out, err = run(*arguments, "--json")
    assert (code, err) == (2, "")
    assert said in json.loads(out)["error"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            FoveateError("a grid of 7 x 4 patches\n cannot be halved"),
            2,
            "a grid of 7 x 4 patches cannot be halved",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.png"), 2, "x.png: No such file or directory"),
        (OSError("not a model"), 2, "not a model"),
        (KeyError("pixel_values"), 1, "KeyError: 'pixel_values'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_a_command(run, info_raises, error, code, said):
    info_raises(error)
    returned, _, err = run("info")
    assert returned == code
    assert said in err
    assert len(err.strip().splitlines()) == 1

    returned, out, err = run("info", "--json")
    assert returned == code
    assert said in json.loads(out)["error"]
    assert err == ""


def test_debug_shows_the_traceback_wherever_it_stands(run, info_raises):
    info_raises(FoveateError("wrong"))
    for line in (["--debug", "info"], ["info", "--debug"]):
        code, _, err = run(*line)
        assert code == 2
        assert "Traceback (most recent call last)" in err
        assert err.rstrip().endswith("error: wrong")


def test_interruption_is_130(run, info_raises):
    info_raises(KeyboardInterrupt())
    assert run("info")[0] == 130
