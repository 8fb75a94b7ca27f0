"""The API reference: one page per package, from the docstrings of public classes and functions, and the commands."""

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
    "loading": "Loading models",
    "answering": "Question answering",
    "core.plan": "Plans",
    "core.method": "Base class of methods",
    "core.registry": "Method registry",
    "core.tokens": "Visual tokens and selections",
    "core.errors": "Errors",
    "runtime": "Compressing live models",
    "gallery": "Gallery of methods",
    "methods.entries": "Gallery entries",
    "methods.image": "Methods before the encoder",
    "methods.encoder": "Methods inside the encoder",
    "methods.connector": "Methods in the connector",
    "methods.pre_llm": "Methods before the language model",
    "methods.video": "Methods on clips",
    "methods.decoder": "Methods inside the language model",
    "methods.decoding": "Speculative and contrastive decoding",
    "methods.kv_cache": "KV cache compression",
    "kv_cache": "Quantized KV caches",
    "image_kv_cache": "KV cache reuse for images",
    "streaming": "Streams of frames",
    "models.vit_uhd": "ViT-UHD",
    "models.connectors": "Connectors",
    "models.llava": "LLaVA with any connector",
    "models.llava_uhd": "LLaVA-UHD",
    "models.next_scale": "Next-scale image model",
    "images": "Reading images",
    "batch": "Files of questions",
    "serving": "Server",
    "integrations.ray": "Ray",
    "training": "Training",
    "synthetic": "Rendered data",
    "benchmark": "Benchmarks",
    "cost": "Cost estimates",
    "tune": "Plan search",
    "report": "Reports",
    "visualization": "Visualization",
    "testing": "Test suites for methods",
}
"""Packages and modules with the titles of their pages."""

ELSEWHERE = "foveate.integrations.vllm"
"""Needs a separate environment to be imported, so its page is written by hand."""

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
        "Available after `import foveate`:",
        "",
    ]
    for name, thing in sorted(exported.items(), key=lambda item: item[0].lower()):
        page = _page_of(thing.__module__)
        shown = f"[`foveate.{name}`](reference/{page}.md#{anchor(name)})" if page else f"`foveate.{name}()`"
        lines.append(f"- {shown}: {first_sentence(thing)}")
    lines += ["", "## Packages", ""]
    for page, title in PAGES.items():
        modules = list(_modules(page))
        if modules:
            lines.append(f"- [{title}](reference/{page}.md)")
            result[f"reference/{page}.md"] = _page(title, modules)
    lines += ["- [Command line](reference/cli.md)", ""]
    result["reference/cli.md"] = _command_line()
    result["reference.md"] = "\n".join(lines)
    return result


def _page_of(module: str) -> str:
    """The page of the innermost package that has one and contains a module; empty for foveate itself."""
    return max((page for page in PAGES if f"{module}.".startswith(f"foveate.{page}.")), key=len, default="")


def anchor(name: str) -> str:
    """The fragment of a heading on GitHub."""
    return name.lower()


def first_sentence(thing: Any) -> str:
    """The first sentence of a docstring.

    Raises:
        ValueError: If there is no docstring.
    """
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    if not paragraph:
        raise ValueError(f"{thing.__module__}.{thing.__qualname__} has no docstring")
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph)[0].replace("[`", "`").replace("`]", "`")


def _modules(page: str) -> Iterator[ModuleType]:
    try:
        package = importlib.import_module(f"foveate.{page}")
    except ModuleNotFoundError as error:
        if error.name == f"foveate.{page}":
            return
        raise
    yield package
    paths = getattr(package, "__path__", [])
    for name in sorted(info.name for info in pkgutil.walk_packages(paths, f"{package.__name__}.")):
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
    """Public classes and functions of a module, in the order of the file."""
    public = {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    }
    yield from public.items()


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
    """A code block with the signature; empty for classes that document their fields."""
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
    """A default value, or `...` if its representation contains an address."""
    text = repr(value)
    return "..." if " at 0x" in text or "object" in text else text


def _markdown(docstring: str) -> str:
    """A Google-style docstring as Markdown: sections become lists, and indented formulas remain code."""
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
    # Brackets around code would be parsed as cross-references.
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
        placeholders = [str(p.name).upper() if p.required else f"[{str(p.name).upper()}]" for p in arguments]
        usage = " ".join(["foveate", name, *placeholders, "[OPTIONS]"])
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
