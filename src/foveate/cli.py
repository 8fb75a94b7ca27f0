"""Command line: `foveate ask | info | methods | train | train-method | convert | bench` and more.

This module knows the names of the commands and one line about each; the module behind a command is imported
only when that command is run, so that `foveate --help` does not wait for torch. It also owns what
all commands share: how an error is said (one sentence, exit code 2, JSON under `--json`) and `--debug`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import logging
import os
import re
import sys
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import foveate
from foveate.console import print_json
from foveate.core.errors import FoveateError
from foveate.core.plugin_names import IMPORTS

INVALID_INPUT = 2
INTERNAL_ERROR = 1
INTERRUPTED = 130

TARGETS = {
    "ask": "foveate.commands.ask:ask",
    "stream": "foveate.commands.stream:stream",
    "info": "foveate.commands.info:info",
    "methods": "foveate.commands.methods:methods",
    "train": "foveate.commands.train:train",
    "convert-scorer": "foveate.commands.convert_scorer:convert_scorer",
    "train-next-scale": "foveate.commands.train_next_scale:train_next_scale",
    "convert": "foveate.commands.convert:convert",
    "batch": "foveate.commands.batch:batch",
    "serve": "foveate.commands.serve:serve",
    "app": "foveate.commands.app:app",
    "accuracy": "foveate.commands.accuracy:accuracy",
    "encoders": "foveate.commands.bench:encoders",
    "patch-scaling": "foveate.commands.bench_patch_scaling:patch_scaling",
    "released": "foveate.commands.bench_released:released",
    "bench serve": "foveate.commands.bench_serve:serve",
    "speed": "foveate.commands.bench:speed",
    "joint": "foveate.commands.joint:joint",
    "trained": "foveate.commands.bench_trained:trained",
    "next-scale": "foveate.commands.next_scale:next_scale",
    "avsr": "foveate.commands.bench_avsr:avsr",
    "flops": "foveate.commands.flops:flops",
    "scaling-law": "foveate.commands.scaling_law:scaling_law",
    "report": "foveate.commands.report:report",
    "tune": "foveate.commands.tune:tune",
}
"""The function behind each command, as `module:function`."""

#: Commands that may need no models, and then do not wait for torch: they register foveate's models themselves.
WITHOUT_MODELS = frozenset({"flops", "methods"})

# typer carries its own copy of click since 0.2x, so the base of its usage errors is found through typer.
ClickException: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def _help(docstring: str | None) -> str:
    """Format a docstring as help: paragraphs reflowed, without the sections for developers."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(docstring or ""))
    prose = itertools.takewhile(lambda text: not re.match(r"(Args|Returns|Raises|Yields):\s", text), paragraphs)
    return "\n\n".join(" ".join(text.split()) for text in prose)


class WithExamples:
    """Command whose help ends with examples, one per line."""

    examples = ""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, then the examples."""
        super().format_help(ctx, formatter)  # ty: ignore[missing-attribute]
        lines = [line.strip() for line in self.examples.splitlines() if line.strip()]
        formatter.write("".join(["\n Examples\n", *(f"   {line}\n" for line in lines)]) if lines else "")


class Command(WithExamples, TyperCommand):
    """Entry of one command in the lazy command list."""

    #: Options that may stand without a value, and the value that they then have; typer has no such options.
    bare: Mapping[str, str] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options."""
        complete: list[str] = []
        for argument, following in itertools.zip_longest(args, args[1:], fillvalue="--"):
            complete.append(argument)
            if argument in self.bare and following.startswith("-") and "--" not in complete:
                complete.append(self.bare[argument])
        return super().parse_args(ctx, complete)


class LazyGroup(WithExamples, TyperGroup):
    """Command group that lists its commands without importing them and imports the one that is run."""

    #: Prefix of names in `TARGETS` that another group uses too.
    prefix = ""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the listed entry by the imported command with all its options.

        Args:
            ctx: The context of the group.
            args: The command's name and what follows it.

        Returns:
            Name, command and remaining arguments, as the base class returns them.
        """
        name, command, rest = super().resolve_command(ctx, args)
        target = TARGETS.get(f"{self.prefix}{name}", TARGETS.get(name))
        if target is None:
            return name, command, rest
        module_name, function = target.split(":")
        module = importlib.import_module(module_name)
        command = _command(name, getattr(module, function), getattr(module, "EXAMPLES", ""))
        command.bare = getattr(module, "BARE", {})
        return name, command, rest


def _command(name: str | None, run: Any, examples: str, cls: type[Command] = Command) -> Any:
    """Build the command of a function with all its options."""

    @functools.wraps(run)
    def registered(*values: Any, **options: Any) -> Any:
        if name not in WITHOUT_MODELS:
            foveate.register()
        if os.environ.get(IMPORTS):
            importlib.import_module("foveate.core.registry").import_named()
        return run(*values, **options)

    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name, cls=cls, help=_help(run.__doc__))(registered)
    command: Any = typer.main.get_command(single)
    command.examples = examples
    return command


class _TrainerCommand(Command):
    """Command of one trainer; an option of another trainer is refused with the name of its method."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options."""
        try:
            return super().parse_args(ctx, args)
        except ClickException as error:
            from foveate.commands.train_method import methods_with

            wrong = getattr(error, "option_name", None)
            methods = methods_with(wrong) if wrong else []
            if not methods:
                raise
            raise FoveateError(
                f"{wrong} is not an option of {self.name}; it belongs to {', '.join(methods)}."
            ) from None


class _TrainMethod(TyperGroup):
    """Group with one command per trainable method, listed without importing the trainers."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of methods."""
        from foveate.training.methods import summaries

        return list(summaries())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the entry of a method in the list."""
        from foveate.training.methods import summaries

        line = summaries().get(cmd_name)
        return None if line is None else TyperCommand(cmd_name, help=line)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of a trainer with its options.

        Args:
            ctx: The context of the group.
            args: The method's name and what follows it.

        Returns:
            Name, command and remaining arguments, as the base class returns them.

        Raises:
            FoveateError: nothing trains that method; those that can be trained are listed.
        """
        from foveate.commands.train_method import command_of

        name, *rest = args
        return name, _command(name, *command_of(name), _TrainerCommand), rest


class _Foveate(LazyGroup):
    examples = """
        foveate info
        foveate ask --example receipt "What is the total?"
        foveate ask photo.jpg "What does the sign say?" --model path/or/hub-id --json
        foveate methods "*prune*"
        foveate COMMAND --help
    """


class _Bench(LazyGroup):
    prefix = "bench "
    examples = """
        foveate bench encoders --quick
        foveate bench speed --quick
    """


app = typer.Typer(
    cls=_Foveate,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help=_help(
        """
        Compress the visual tokens of multimodal models.

        Plans of published methods prune and merge the visual tokens of Hugging Face models; the vision transformer
        of LLaVA-UHD v3 merges them inside itself. Every command accepts [bold]--json[/bold], and ends with exit
        code 2 and one sentence if its input is invalid.
        """
    ),
)
bench = typer.Typer(cls=_Bench, rich_markup_mode="rich")
app.add_typer(bench, name="bench")
train_method = typer.Typer(cls=_TrainMethod, rich_markup_mode="rich")
app.add_typer(train_method, name="train-method")


def _list(group: typer.Typer, name: str, line: str) -> None:
    group.command(name, help=line)(lambda: None)


_list(app, "ask", "Answer a question about images or a clip, and report visual tokens and timings.")
_list(app, "stream", "Read a video file as a stream, and answer a question every few seconds.")
_list(app, "info", "Describe a model: parameters, stages, and visual tokens by image size.")
_list(app, "methods", "List the methods that a plan can name: what they need, and which models they support.")
_list(app, "batch", "Answer a JSONL file of questions about images; can be resumed.")
_list(app, "serve", "Serve a model over HTTP with an OpenAI-compatible API.")
_list(app, "app", "Compare a model with and without a plan in the browser, token by token.")
_list(app, "train", "Train a model from a recipe, or resume a run.")
_list(app, "convert-scorer", "Extract FocusUI's scorer from a released checkpoint.")
_list(app, "train-next-scale", "Train a small next-scale image model for KV-cache benchmarks.")
_list(app, "convert", "Convert a pretrained vision transformer to ViT-UHD.")
_list(app, "flops", "Compute FLOPs and KV cache with and without a plan, from the configuration alone.")
_list(app, "scaling-law", "Fit error over language-model size and visual tokens; the best tokens at equal cost.")
_list(app, "report", "Build a static report from results: tables, plots, a page for every method.")
_list(app, "tune", "Search for the best plan for a model and your questions: methods, budgets, layers.")
_list(bench, "accuracy", "Measure accuracy with fewer visual tokens, plan by plan.")
_list(bench, "encoders", "Compare vision encoders by image size: tokens, FLOPs, time and memory.")
_list(bench, "patch-scaling", "Measure encoders at smaller and smaller patches: time, memory, and how they grow.")
_list(bench, "released", "Measure plans on a released model and public tasks, with lmms-eval; for the leaderboard.")
_list(bench, "serve", "Measure plans in a running server: throughput, time to first token and between tokens.")
_list(bench, "speed", "Measure the speed of plans: time per part, memory, KV cache and FLOPs, with two controls.")
_list(bench, "joint", "Combine token compression with quantised weights and caches: accuracy and cost.")
_list(bench, "trained", "Train connectors and encoders under one protocol: accuracy, tokens, FLOPs and time.")
_list(bench, "avsr", "Train speech recognizers that read sound and lips; word error by noise and compression rate.")
_list(bench, "next-scale", "Measure KV-cache compression in a next-scale image model: bytes, time, image distance.")


@bench.callback()
def _bench() -> None:
    """Run benchmarks; results are written as JSON."""


@train_method.callback()
def _train_method() -> None:
    """Train the weights of a method for one model: pruning modules, routers, scorers, drafts, thresholds.

    For the options of a method see foveate train-method NAME --help.
    """


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foveate {version('foveate')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _foveate(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; accepted anywhere on the command line.")
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="FILE.py|MODULE",
            help="Import a file or a module that registers methods before the command runs; repeatable, anywhere in "
            "the line.",
        ),
    ] = None,
) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def _given(arguments: list[str], option: str) -> bool:
    """Whether an option is on the command line, before a `--` that ends the options."""
    return option in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _taken_imports(arguments: list[str]) -> list[str]:
    """Take every `--import` and its value out of the line, wherever it stands before a `--`.

    Raises:
        FoveateError: one has no value.
    """
    found, place = [], 0
    while place < len(arguments) and arguments[place] != "--":
        option, equals, value = arguments[place].partition("=")
        if option != "--import":
            place += 1
            continue
        if not equals:
            value = arguments.pop(place + 1) if place + 1 < len(arguments) else ""
        if not value or value.startswith("-"):
            raise FoveateError("--import needs a file or a module, such as --import my_method.py.")
        del arguments[place]
        # Processes that the command starts may work in another folder.
        found.append(str(Path(value).resolve()) if value.endswith(".py") or os.sep in value else value)
    return found


@contextmanager
def _importing(targets: list[str]) -> Generator[None]:
    """What a command, and every process that it starts, imports first; see `foveate.core.registry`."""
    before = os.environ.get(IMPORTS)
    if targets:
        os.environ[IMPORTS] = os.pathsep.join([*([before] if before else []), *targets])
    try:
        yield
    finally:
        if targets:
            del os.environ[IMPORTS]
            if before is not None:
                os.environ[IMPORTS] = before


def _sentence(error: BaseException) -> str:
    """Format an error message on one line, with the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        message = str(error) or type(error).__name__
    return " ".join(message.split())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit code: 0; 2 for input that cannot work; 1 for a fault of foveate; 130 when interrupted.
    """
    # transformers imports torchao where it is installed, and torch then warns of what torchao registers.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = _given(arguments, "--json")
    debug = _given(arguments, "--debug")
    if debug:
        arguments.remove("--debug")

    def say(code: int, message: str, refusal: str = "") -> int:
        if debug:
            traceback.print_exc()
        if as_json:
            print_json({"error": message, "code": refusal} if refusal else {"error": message})
        else:
            typer.echo(f"error: {message}", err=True)
        return code

    try:
        with _importing(_taken_imports(arguments)):
            result = typer.main.get_command(app).main(arguments, prog_name="foveate", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except ClickException as error:
        path = error.ctx.command_path if getattr(error, "ctx", None) else "foveate"
        return say(INVALID_INPUT, f"{_sentence_of_usage(error)} See '{path} --help'.")
    except (FoveateError, OSError) as error:
        return say(INVALID_INPUT, _sentence(error), getattr(error, "code", ""))
    except Exception as error:
        what = f"{type(error).__name__}: {_sentence(error)}"
        return say(INTERNAL_ERROR, f"foveate failed: {what} (--debug shows where; please report it)")


def _sentence_of_usage(error: Any) -> str:
    """Format a usage error on one line that ends with a full stop."""
    message = " ".join(str(error.format_message()).split())
    return message if message.endswith((".", "?")) else f"{message}."
