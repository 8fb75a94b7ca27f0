"""The reference: one page a package, from the docstrings of every public class and function, and the command line."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import typer

from foveate import cli
from foveate.training.methods import summaries

PAGES = {
    "loading": "Models by name",
    "answering": "Questions and answers",
    "core.plan": "Plans",
    "core.method": "What a method is",
    "core.registry": "Methods by name",
    "core.tokens": "Tokens and selections",
    "core.errors": "Errors",
    "runtime": "Live models: attach, report, restore",
    "gallery": "The gallery of methods",
    "methods.entries": "Entries of the gallery",
    "methods.image": "Methods before the encoder",
    "methods.encoder": "Methods inside the encoder",
    "methods.pre_llm": "Methods before the language model",
    "methods.decoder": "Methods inside the language model",
    "methods.decoding": "Drafts, and contrast while text is written",
    "methods.kv_cache": "Caches of fewer entries",
    "kv_cache": "Caches in fewer bits",
    "image_kv_cache": "Images that are read once",
    "models.vit_uhd": "ViT-UHD",
    "models.connectors": "Connectors",
    "models.llava_uhd": "LLaVA-UHD",
    "models.next_scale": "A next-scale image model",
    "images": "Reading images",
    "batch": "Files of questions",
    "serving": "A server",
    "integrations.ray": "Replicas on a Ray cluster",
    "training": "Training",
    "synthetic": "Rendered data",
    "benchmark": "Measuring",
    "cost": "Costs by formula",
    "tune": "Search",
    "report": "Result pages",
    "visualization": "Pictures",
    "testing": "Promises of a method",
}
"""Packages and modules, with the titles of their pages."""

ELSEWHERE = "foveate.integrations.vllm"
"""Imports what only an environment of its own has; its page is written by hand."""

SECTIONS = ("Args", "Returns", "Raises", "Yields", "Attributes")


def pages() -> dict[str, str]:
    """Every page of the reference by its path under `docs/`."""
    import foveate

    exported = {name: getattr(foveate, name) for name in foveate.__all__ if not name.startswith("_")}
    result = {}
    lines = [
        "# Reference",
        "",
        "Generated from the docstrings by `make docs`.",
        "",
        "## `foveate`",
        "",
        "What `import foveate` gives:",
        "",
    ]
    for name, thing in sorted(exported.items(), key=lambda item: item[0].lower()):
        room = thing.__module__.partition(".")[2].partition(".")[0]
        shown = f"[`foveate.{name}`](reference/{room}.md#{anchor(name)})" if room else f"`foveate.{name}()`"
        lines.append(f"- {shown}: {first_sentence(thing)}")
    lines += ["", "## Rooms", ""]
    for room, title in PAGES.items():
        modules = list(_modules(room))
        if modules:
            lines.append(f"- [{title}](reference/{room}.md)")
            result[f"reference/{room}.md"] = _page(title, modules)
    lines += ["- [Command line](reference/cli.md)", ""]
    result["reference/cli.md"] = _command_line()
    result["reference.md"] = "\n".join(lines)
    return result


def anchor(name: str) -> str:
    """The fragment that GitHub gives the heading of a name."""
    return name.lower()


def first_sentence(thing: Any) -> str:
    """The first sentence of a docstring.

    Raises:
        ValueError: If there is no docstring; every public thing has one.
    """
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    if not paragraph:
        raise ValueError(f"{thing.__module__}.{thing.__qualname__} has no docstring")
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0].replace("[`", "`").replace("`]", "`")


def _modules(room: str) -> Iterator[ModuleType]:
    try:
        package = importlib.import_module(f"foveate.{room}")
    except ModuleNotFoundError as error:
        if error.name == f"foveate.{room}":
            return
        raise
    yield package
    paths = getattr(package, "__path__", [])
    for name in sorted(found.name for found in pkgutil.walk_packages(paths, f"{package.__name__}.")):
        if not any(part.startswith("_") for part in name.split(".")) and not name.startswith(ELSEWHERE):
            yield importlib.import_module(name)


def _page(title: str, modules: list[ModuleType]) -> str:
    lines = [f"# {title}", ""]
    for module in modules:
        things = list(_public(module))
        if not things and not (module is modules[0] and module.__doc__):
            continue
        lines += [f"## `{module.__name__}`", "", _markdown(inspect.getdoc(module) or ""), ""]
        for name, thing in things:
            lines += [f"### `{name}`", "", *_signature(name, thing), _markdown(inspect.getdoc(thing) or ""), ""]
            if inspect.isclass(thing):
                lines += _members(thing)
    return "\n".join(lines).rstrip() + "\n"


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Classes and functions that a module defines, in the order of the file."""
    own = {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    }
    yield from own.items()


def _members(cls: type) -> list[str]:
    lines = []
    for name, member in vars(cls).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(inspect.unwrap(function)) or not inspect.getdoc(function):
            continue
        lines += [f"#### `{cls.__name__}.{name}`", ""]
        if not isinstance(member, property):
            lines += _signature(name, function)
        lines += [_markdown(inspect.getdoc(function) or ""), ""]
    return lines


def _signature(name: str, thing: Any) -> list[str]:
    """A code block with the signature; nothing for what is made by its own documented fields."""
    if inspect.isclass(thing) and (not _own_init(thing) or issubclass(thing, BaseException)):
        return []
    parameters = [
        p for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls") and p.name[0] != "_"
    ]
    parts: list[str] = []
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            starred = True
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = f"{stars}{parameter.name}"
        annotated = parameter.annotation is not parameter.empty
        if annotated:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f"{' = ' if annotated else '='}{_default(parameter.default)}"
        parts.append(text)
    returned = inspect.signature(thing).return_annotation
    arrow = "" if inspect.isclass(thing) or returned is inspect.Signature.empty else f" -> {_annotation(returned)}"
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) > 100:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){arrow}"
    return ["```python", line, "```", ""]


def _own_init(cls: type) -> bool:
    return "__init__" in vars(cls) and (
        not dataclasses.is_dataclass(cls) or len(inspect.signature(cls).parameters) < 12
    )


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    """A default as written; what has an address for a representation is left out."""
    text = repr(value)
    return "..." if " at 0x" in text or "object" in text else text


def _markdown(docstring: str) -> str:
    """A Google-style docstring as markdown: its sections become lists, indented formulas stay code."""
    lines: list[str] = []
    section = ""
    for line in docstring.splitlines():
        heading = re.fullmatch(r"(\w+):", line)
        if heading and heading[1] in SECTIONS:
            section = heading[1]
            lines += [f"**{section}**", ""]
            continue
        if section and line and not line.startswith(" "):
            section = ""
        if not section:
            lines.append(line)
            continue
        item = re.fullmatch(r"    ([*\w., ]+?)(?: \(([^)]*)\))?: (.*)", line)
        if item and section not in ("Returns", "Yields"):
            kind = f" ({item[2]})" if item[2] else ""
            lines.append(f"- `{item[1]}`{kind}: {item[3]}")
        elif line.strip():
            indent = "" if section in ("Returns", "Yields") else "  "
            lines.append(indent + line.strip())
        else:
            lines.append("")
    # Nothing in prose may be read as a tag or a cross-reference.
    return "\n".join(lines).replace("[`", "`").replace("`]", "`").strip()


def _command_line() -> str:
    lines = ["# Command line", "", "Generated from `foveate COMMAND --help` by `make docs`.", ""]
    root: Any = typer.main.get_command(cli.app)
    names = [name for name in root.commands if name in cli.TARGETS]
    names += [f"train-method {name}" for name in summaries()]
    names += [f"bench {name}" for name in root.commands["bench"].commands]
    for name in names:
        group, path = root, name.split()
        for part in path[:-1]:
            group = group.commands[part]
        _, command, _ = group.resolve_command(group.make_context("foveate", [path[-1]]), [path[-1]])
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        given = [str(p.name).upper() if p.required else f"[{str(p.name).upper()}]" for p in arguments]
        usage = " ".join(["foveate", name, *given, "[OPTIONS]"])
        lines += [f"## `foveate {name}`", "", re.sub(r"\[/?bold\]", "", command.help or ""), "", f"    {usage}", ""]
        lines += ["| | default | |", "|---|---|---|"]
        for parameter in command.params:
            names = str(parameter.name).upper() if parameter in arguments else ", ".join(parameter.opts)
            default = "" if parameter.default in (None, False, ()) or parameter.required else f"`{parameter.default}`"
            meaning = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
            lines.append(f"| `{names}` | {'required' if parameter.required else default} | {meaning} |")
        examples = [line.strip() for line in command.examples.splitlines() if line.strip()]
        lines += ["", "```sh", *examples, "```", ""]
    return "\n".join(lines).rstrip() + "\n"
