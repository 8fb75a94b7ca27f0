"""`foveate train-method NAME`: train the weights of one method for one model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from foveate.commands.lists import numbers_in, sides_in
from foveate.commands.options import GoOn, Json, MaxMinutes, WhereItRuns
from foveate.commands.training import with_progress
from foveate.console import command_line, console, notes, print_json

Model = Annotated[
    str | None, typer.Option(help="Folder or Hub id of a model; the embedded model by default.", show_default=False)
]
NamedModel = Annotated[str, typer.Option(help="Folder or Hub id of a model.", show_default=False)]


def train_method(
    name: str,
    output: Path,
    *,
    model: str | None = None,
    device: str | None = None,
    resume: bool = True,
    max_minutes: float | None = None,
    as_json: bool = False,
    **options: Any,
) -> None:
    """Train the weights of a method for a model, whose own weights stay frozen unless the trainer says otherwise.

    Args:
        name: Name of the method.
        output: File or folder to write.
        model: Folder or Hub id; None is the embedded model.
        device: Device of the model.
        resume: Resume an interrupted run.
        max_minutes: Minutes after which the run stops and can be resumed.
        as_json: Print one JSON document instead of text.
        options: Fields of the trainer's options.

    Raises:
        FoveateError: nothing trains that method, or its trainer refuses.
    """
    from foveate.loading import fingerprint
    from foveate.training.methods import trainer_of
    from foveate.training.run_directory import RunDirectory, check_output

    cls = trainer_of(name)
    trainer = cls(cls.config_class(**options))
    check_output(output)
    data = trainer.data()
    run: Any = RunDirectory(output, {"model": fingerprint(model), **trainer.about()}, resume) if cls.resumable else None
    with notes.status(f"reading {model or 'the embedded model'}"):
        net, processor = trainer.load(model, device)
    state = with_progress(
        name, max_minutes, lambda on_progress, stop: trainer.fit(net, processor, data, run, on_progress, stop)
    )
    document: dict[str, Any] = {
        "command": command_line(),
        "method": name,
        "finished": state.finished,
        "output": str(output) if state.finished else None,
        "model": model or "embedded",
        **({"log": str(run.log.path)} if run else {}),
        **trainer.describe(net, state),
    }
    if state.finished:
        trainer.save(state.network, output)
        with notes.status("evaluating the trained weights"):
            document |= trainer.evaluate(net, processor, state, output)
    if as_json:
        print_json(document)
        return
    lines = trainer.report(document) if state.finished else ["stopped; run the same command to resume."]
    for line in lines:
        console.print(line, soft_wrap=True)


def command_of(name: str) -> tuple[Callable[..., None], str]:
    """Build the function of `foveate train-method NAME` with the options of the trainer, and its examples.

    Raises:
        FoveateError: nothing trains that method.
    """
    with notes.status("loading foveate"):
        from foveate.training.methods import trainer_of

        trainer = trainer_of(name)
    hints = get_type_hints(trainer.config_class)
    converters = {field.name: _converter(field.name, hints[field.name]) for field in fields(trainer.config_class)}

    def run(**values: Any) -> None:
        options = {key: convert(values.pop(key)) for key, convert in converters.items()}
        train_method(name, values.pop("output"), **values, **options)

    kind = "File" if Path(trainer.output).suffix else "Folder"
    output = Annotated[
        Path, typer.Option("--output", "-o", help=f"{kind} to write, such as {trainer.output}.", show_default=False)
    ]
    model = _parameter("model", NamedModel) if trainer.needs_model else _parameter("model", Model, None)
    parameters = [model, _parameter("output", output)]
    parameters += [_option(field, hints[field.name]) for field in fields(trainer.config_class)]
    if trainer.resumable:
        parameters += [_parameter("resume", GoOn, True), _parameter("max_minutes", MaxMinutes, None)]
    parameters += [_parameter("device", WhereItRuns, None), _parameter("as_json", Json, False)]
    run.__signature__ = inspect.Signature(parameters)  # ty: ignore[missing-attribute]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    own = "are trained and written with its processor" if trainer.trains_model else "stay frozen"
    more = f"The model's own weights {own}."
    if trainer.resumable:
        more += (
            " The trained weights are evaluated at the end. After an interruption (Ctrl-C or SIGTERM) the same command "
            "resumes. State and log are kept in a directory next to the output."
        )
    run.__doc__ = f"{inspect.getdoc(trainer)}\n\n{more}"
    return run, trainer.examples


def methods_with(option: str) -> list[str]:
    """List the methods whose trainers have an option, such as `--pressure`."""
    from foveate.training.methods import summaries, trainer_of
    from foveate.training.methods.shared.config import option_names

    return [name for name in summaries() if option in option_names(trainer_of(name).config_class)]


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _option(field: Field[Any], hint: Any) -> inspect.Parameter:
    """Convert a field of a trainer's options to an option of its command."""
    metadata, optional = field.metadata, _optional(hint)
    written = [metadata["flags"]] if metadata.get("flags") else []
    shown: Any = metadata.get("shown") or (field.default not in (None, ()))
    info = typer.Option(*written, help=metadata.get("help"), min=metadata.get("minimum"), show_default=shown)
    kind: Any = list[Path] if optional == tuple[Path, ...] else str if get_origin(optional) is tuple else optional
    if field.default is MISSING:
        return _parameter(field.name, Annotated[kind, info])
    if field.default in (None, ()):
        return _parameter(field.name, Annotated[kind | None, info], None)
    return _parameter(field.name, Annotated[kind, info], field.default)


def _optional(hint: Any) -> Any:
    """Return the type of an optional value."""
    if get_origin(hint) in (Union, UnionType):
        return next(part for part in get_args(hint) if part is not type(None))
    return hint


def _converter(name: str, hint: Any) -> Callable[[Any], Any]:
    """Return the conversion from typer's value to the field's: comma-separated lists become tuples of numbers."""
    kind, option = _optional(hint), f"--{name.replace('_', '-')}"
    if kind == tuple[Path, ...]:
        return lambda value: tuple(value or ())
    if kind == tuple[int, int]:
        return lambda value: None if value is None else sides_in(value)
    if kind == tuple[int, ...]:
        return lambda value: None if value is None else numbers_in(value, option)
    return lambda value: value
