"""Pages of a report: an overview, and one page per method."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from foveate.report import tables
from foveate.report.charts import Chart, slug
from foveate.report.grouping import GROUPS, entries, group_of
from foveate.report.html import address, page, paragraph, tag, text
from foveate.report.images import BUDGET, EMBEDDED, Album, Picture
from foveate.report.rendering import svg, swatch
from foveate.report.results import ALL, FULL_MODEL, GROUP, Results
from foveate.report.texts import FRONT, KEPT, NO_TIMES, PROTOCOL
from foveate.report.trained import section, trained_charts

#: Folders of a report.
METHODS, PLOTS, PICTURES = "methods", "plots", "pictures"
#: Where a method acts, by its site.
ACTS = {
    "acquisition": "before the model reads an image",
    "pre_llm": "before the language model",
    "frames": "on the frames of a clip, before the model",
    "image": "on the image",
    "encoder": "inside the encoder",
    "connector": "in the connector",
    "decoder": "inside the language model",
}
#: Controls on the page of each method.
BESIDE = ("random", "random-decoder", "downsample")


@dataclass
class Report:
    """Data and options that pages are rendered from.

    Args:
        title: Of the page.
        results: What was measured.
        tokens: Charts of accuracy against tokens.
        times: Charts of accuracy against time.
        albums: Pictures by method; "" has the images themselves.
    """

    title: str
    results: Results
    tokens: Sequence[Chart]
    times: Sequence[Chart]
    albums: Mapping[str, Album] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Assign a distinct file name to every method."""
        self._files: dict[str, str] = {}
        for method in self.results.methods:
            name = slug(method) or "method"
            while f"{name}.html" in self._files.values():
                name += "-2"
            self._files[method] = f"{name}.html"

    def pages(self) -> dict[str, str]:
        """Render the pages by their address within the report."""
        rendered = {f"{METHODS}/{file}": self._method(method) for method, file in self._files.items()}
        return rendered | {"index.html": self._index()}

    def _link(self, *folders: str) -> Callable[[str], str]:
        return lambda method: address(*folders, self._files[method]) if method in self._files else ""

    # -- the page over everything ----------------------------------------------------------------------------------

    def _index(self) -> str:
        link, results = self._link(METHODS), self.results
        sections = [
            ("best", "Which plan to take", self._best(link)),
            ("plots", "Accuracy against tokens and time", self._charts()),
            ("accuracy", "Accuracy of every plan", self._accuracy(link)),
            ("tasks", "Task by task", self._tasks(link)),
            ("speed", "Speed and memory", _filtered(tables.speed(results, link), "No selected plan was timed.")),
            ("joint", "With quantised weights and caches", _filtered(tables.joint(results, link))),
            ("trained", "Trained connectors", self._trained()),
            ("methods", "Methods", self._methods(link)),
            ("images", "The six images", self._images()),
            ("not", "What cannot run", _filtered(tables.impossible(results.impossible), "Every plan ran.")),
            ("protocol", "How it was measured", self._protocol()),
        ]
        sections = [section for section in sections if section[2]]
        plans = {row["plan"] for row in (*results.accuracy, *results.speed, *results.joint)} - {FULL_MODEL}
        models = results.models
        counted, compared = [], ""
        if plans or not results.trained:
            counted = [f"{_many(plans, 'plan')} of {_many(results.methods, 'method')} on {_many(models, 'model')}"]
            compared = "; every method is compared with the full model, random tokens and a smaller image"
        questions = sum(row["count"] for row in results.accuracy if row["plan"] == FULL_MODEL and _single(row["task"]))
        if questions:
            counted.append(f"{questions:,} questions for each plan" if len(models) == 1 else f"{questions:,} questions")
        if results.trained:
            systems = {row["system"] for row in results.trained}
            counted.append(f"{_many(results.trained, 'row')} of {_many(systems, 'trained system')}")
        body = [
            tag("h1", text(self.title)),
            paragraph(f"{', '.join(counted)}. Every number comes from the result files named at the end{compared}."),
            tag("nav", *(tag("a", text(title), href=f"#{key}") for key, title, _ in sections), aria_label="Sections"),
            self._filter() if compared else "",
            *(tag("section", tag("h2", text(title), id=key), inner) for key, title, inner in sections),
        ]
        return self._page(self.title, body)

    def _page(self, title: str, body: Sequence[str]) -> str:
        colours = {group.key: group.colour for group in GROUPS.values()}
        return page(title, tag("main", *body), colours=colours)

    def _filter(self) -> str:
        rows = (*self.results.accuracy, *self.results.speed, *self.results.joint)
        models = self.results.models
        budgets: dict[str, dict[str, None]] = {}
        for row in rows:
            if row["budget"]:
                budgets.setdefault(row["budget"], {})[row["model"]] = None
        options = [tag("option", text(model), value=model) for model in models]
        if len(models) > 1:
            options.append(tag("option", "all models", value="*"))
        chosen = [tag("option", "all budgets", value="*")]
        for budget, owners in sorted(budgets.items(), key=lambda item: tables.by_size(item[0])):
            words = f"{budget} tokens" if budget.isdigit() else budget
            chosen.append(tag("option", text(words), value=budget, data_models=json.dumps(list(owners))))
        used = dict.fromkeys(group_of(row["method"]).key for row in rows)
        boxes = [
            tag(
                "label",
                tag("input", type="checkbox", value=key, checked=True, autocomplete="off").replace("</input>", ""),
                tag("span", swatch(group.marker), class_=f"g-{key}", style="display:inline-flex"),
                text(group.title),
            )
            for key, group in GROUPS.items()
            if key in used
        ]
        return tag(
            "form",
            tag("label", "model", tag("select", *options, name="model", autocomplete="off")),
            tag("label", "budget", tag("select", *chosen, name="budget", autocomplete="off")),
            tag("fieldset", tag("legend", "Families of methods"), *boxes),
            id="filters",
            hidden=True,
            aria_label="What is shown",
        )

    def _best(self, link: Callable[[str], str]) -> str:
        inner = tables.best(self.results, link)
        if not inner:
            return ""
        words = (
            "The first of many plans is partly lucky: those named at the end of a row cannot be distinguished "
            "from it by their "
            "intervals. Where the smaller image or random tokens are as good, no method is needed."
        )
        return paragraph(words) + _filtered(inner)

    def _charts(self) -> str:
        charts = [chart for model in self.results.models for chart in self._of(model)]
        if not charts:
            return ""
        words = "" if self.times or not self.results.speed else NO_TIMES
        figures = tag("div", *(_figure(chart) for chart in charts), class_="charts")
        return paragraph(f"{FRONT} {words}") + _filtered(figures, "Nothing to draw for this model.")

    def _of(self, model: str) -> list[Chart]:
        return [chart for chart in (*self.tokens, *self.times) if chart.model == model]

    def _accuracy(self, link: Callable[[str], str]) -> str:
        return _filtered(tables.accuracy(self.results, link), "No selected plan was evaluated.")

    def _tasks(self, link: Callable[[str], str]) -> str:
        parts = []
        for groups, caption in (
            (True, "Accuracy by kind of question"),
            (False, "Accuracy by task"),
        ):
            caption += "; orange: less than the full model, blue: more"
            parts.append(_filtered(tables.breakdown(self.results, link, groups=groups, caption=caption)))
        return "".join(parts)

    def _trained(self) -> str:
        return section(self.results.trained, self.results.claims, trained_charts(self.results.trained), _figure)

    def _methods(self, link: Callable[[str], str]) -> str:
        parts = []
        for key, group in GROUPS.items():
            members = [method for method in self.results.methods if group_of(method).key == key]
            if members:
                items = [tag("li", tag("a", text(name), href=link(name)), " ", _title(name)) for name in members]
                heading = tag("i", class_=f"dot g-{key}", aria_hidden="true") + text(group.title)
                parts.append(tag("h3", heading) + tag("ul", *items, class_="cards"))
        return "".join(parts)

    def _images(self) -> str:
        album = self.albums.get("")
        if album is None:
            return ""
        words = (
            "Pages from the held-out split of the project's generator. The page of every method shows what "
            f"it keeps of them; here are the answers of {_model(album)} with all tokens."
        )
        return paragraph(words) + _pictures(album, address(PICTURES))

    def _protocol(self) -> str:
        kinds = {source.kind for source in self.results.sources}
        parts = [
            tag("h3", text(title)) + paragraph(words) for title, about, words in PROTOCOL if kinds.intersection(about)
        ]
        parts.append(tag("h3", "Files, commands and machines"))
        for source in self.results.sources:
            facts = [
                ("command", tag("code", text(source.command)) if source.command else "not recorded"),
                ("hardware", text(_facts(source.hardware))),
                ("versions", text(_facts(source.versions))),
                ("settings", text(_facts(source.settings))),
            ]
            if source.note:
                facts.append(("columns", text(source.note)))
            inner = "".join(tag("dt", key) + tag("dd", value) for key, value in facts)
            parts.append(
                tag("details", tag("summary", text(f"{source.name} ({source.kind})")), tag("dl", inner), open=True)
            )
        return "".join(parts)

    # -- the page of a method --------------------------------------------------------------------------------------

    def _method(self, method: str) -> str:
        entry, link = entries().get(method), self._link()
        results = _only(self.results, method)
        body = [tag("nav", tag("a", text(f"← {self.title}"), href="../index.html"))]
        if entry is None:
            body += [tag("h1", text(method)), paragraph("This version of foveate has no method of this name.")]
        else:
            body += self._described(method, entry)
        body.append(self._kept(method))
        measured_models = {row["model"] for row in results.accuracy if row["method"] == method}
        figures = [
            _figure(chart, method) for model in results.models if model in measured_models for chart in self._of(model)
        ]
        if figures:
            body.append(
                tag("h2", f"{text(method)} compared with other methods") + tag("div", *figures, class_="charts")
            )
        comparison = "compared with the full model, random tokens and a smaller image"
        shown = [
            ("Accuracy", tables.accuracy(results, link, caption=f"Accuracy {comparison}")),
            ("", tables.breakdown(results, link, groups=True, caption="Accuracy by kind of question")),
            ("", tables.breakdown(results, link, groups=False, caption="Accuracy by task")),
            ("Speed and memory", tables.speed(results, link, caption=f"Cost {comparison}")),
            ("With quantised weights and caches", tables.joint(results, link)),
            ("What cannot run", tables.impossible(results.impossible)),
        ]
        for heading, inner in shown:
            if inner:
                body.append((tag("h2", heading) if heading else "") + inner)
        return self._page(f"{method}: {self.title}", body)

    def _described(self, method: str, entry: Any) -> list[str]:
        group = group_of(method)
        paper = text(entry.paper) or "a control, of no paper"
        if match := re.fullmatch(r"arXiv:? ?(\d{4}\.\d{4,5})", entry.paper):
            paper = tag("a", paper, href=f"https://arxiv.org/abs/{match[1]}")
        budget = {"count": "needed", "optional": "possible", "none": "its own rule decides"}[entry.budget]
        needs = ", ".join(kind.replace("_", " ") for kind in entry.needs) or "nothing beyond the tokens"
        facts = [
            ("paper", paper),
            ("family", tag("i", class_=f"dot g-{group.key}", aria_hidden="true") + text(group.title)),
            ("acts", text(ACTS.get(entry.site, entry.site))),
            ("needs", text(needs) + (", and trained weights" if entry.trained else "")),
            ("budget", budget + ("" if entry.static_count else "; how many tokens stay depends on the image")),
        ]  # fmt: skip
        listed = "".join(tag("dt", key) + tag("dd", value) for key, value in facts)
        prose, arguments = _docstring(method)
        lines = [
            (name, repr(value) if value != "required" else value, arguments.get(name, ""))
            for name, value in entry.arguments.items()
        ]
        body = [tag("h1", text(entry.title)), paragraph(f"In plans: {method}", "muted"), tag("dl", listed)]
        body += [tag("p", _code(part)) for part in prose]
        if lines:
            titles = ("name", "default", "meaning")
            body.append(tables.plain(f"Hyper-parameters of {method}", titles, lines))
        return body

    def _kept(self, method: str) -> str:
        album = self.albums.get(method)
        if album is None:
            return ""
        heading = tag("h2", "Kept tokens")
        if not album.pictures:
            return heading + paragraph(f"There are no images: {album.reason}")
        words = f"{album.plan} on {_model(album)}. {KEPT}"
        if BUDGET not in album.plan:
            words += f" Other methods are shown at {BUDGET}."
        return heading + paragraph(words) + _pictures(album, address("..", PICTURES))


def _figure(chart: Chart, chosen: str = "") -> str:
    """Render a chart with its title, and a link to its file unless a method is highlighted."""
    files = tag("a", "as PNG", href=address(PLOTS, f"{chart.name}.png"))
    return tag(
        "figure",
        tag("h3", text(chart.title)),
        svg(chart, chosen),
        tag("p", "Point at a marker for details.", class_="readout", aria_live="polite"),
        "" if chosen else tag("figcaption", files),
        class_="chart",
        data_model=None if chosen else chart.model or None,
    )


def _model(album: Album) -> str:
    return "the embedded model" if album.model == EMBEDDED else f"the model {album.model}"


def _pictures(album: Album, folder: str) -> str:
    return tag("div", *(_picture(picture, folder, album.plan) for picture in album.pictures), class_="pictures")


def _picture(picture: Picture, folder: str, plan: str) -> str:
    right = picture.answer.strip() == picture.expected.strip()
    counts = f"{picture.tokens_kept} of {picture.tokens_in} tokens" if plan else f"{picture.tokens_in} tokens"
    if picture.last is not None:
        counts += f", {picture.last} to the last layer"
    if picture.merged:
        counts += f", {picture.merged} merged"
    width, height = picture.size
    file = f"{folder}/{address(picture.file)}"
    alt = text(f"{picture.shows}; {counts}")
    image = f'<a href="{text(file)}"><img src="{text(file)}" width="{width}" height="{height}" alt="{alt}"></a>'
    verdict = tag("span", "right" if right else "wrong", class_=f"tag {'right' if right else 'wrong'}")
    answer = text(picture.answer or "no answer")
    expected = "" if right else f" (expected {text(picture.expected)})"
    lines = (tag("span", text(counts), class_="muted"), text(picture.question), verdict + answer + expected)
    caption = "<br>".join(lines)
    return tag("figure", image, tag("figcaption", caption))


def _filtered(inner: str, otherwise: str = "Nothing was measured for this selection.") -> str:
    """Render a section that the filter may empty, with a note for that case."""
    if not inner:
        return ""
    return tag("div", inner, tag("p", text(otherwise), class_="none", hidden=True), class_="filtered")


def _only(results: Results, method: str) -> Results:
    """Select the rows of one method and of its controls, on the same models and budgets."""

    def chosen(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        measured = {(row["model"], row["budget"]) for row in rows if row["method"] == method}
        models = {model for model, _ in measured}
        return [
            row
            for row in rows
            if row["method"] == method
            or (row["plan"] == FULL_MODEL and row["model"] in models)
            or (row["method"] in BESIDE and (row["model"], row["budget"]) in measured)
        ]

    lines = [line for line in results.impossible if re.split(r"[:(@ ]", line["plan"])[0] == method]
    parts = {name: chosen(getattr(results, name)) for name in ("accuracy", "speed", "joint")}
    return replace(results, **parts, impossible=lines)


def _many(things: Collection[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _single(task: str) -> bool:
    return task != ALL and not task.startswith(GROUP)


def _title(method: str) -> str:
    entry = entries().get(method)
    return tag("span", text(entry.title.split(":")[-1].strip()), class_="muted") if entry else ""


def _facts(values: Mapping[str, Any]) -> str:
    """Render values by name on one line."""
    shown = [
        f"{name} {value if isinstance(value, (str, int, float)) else json.dumps(value)}"
        for name, value in values.items()
        if value not in (None, "", [], {})
    ]
    return ", ".join(shown) or "not recorded"


def _docstring(method: str) -> tuple[list[str], dict[str, str]]:
    """Return the paragraphs of a method's docstring and the descriptions of its arguments."""
    from foveate.core.registry import all_methods

    written = inspect.getdoc(all_methods()[method]) or ""
    prose, _, rest = written.partition("\nArgs:\n")
    arguments: dict[str, str] = {}
    name = ""
    for line in rest.splitlines():
        if match := re.match(r" {4}(\w+): (.+)", line):
            name = match[1]
            arguments[name] = match[2]
        elif name and line.startswith(" " * 8):
            arguments[name] += " " + line.strip()
        elif not line.startswith(" "):
            name = ""
    return [" ".join(part.split()) for part in prose.split("\n\n") if part.strip()], arguments


def _code(words: str) -> str:
    """Render a docstring paragraph, with text between backticks or dollars as code."""
    return re.sub(r"(`+|\$)([^`$]+)\1", r"<code>\2</code>", text(words))
