"""The pages of methods: the gallery, and the matrix of methods and families, computed from the registries."""

from __future__ import annotations

import re

from foveate.cards import Card, cards
from foveate.core.errors import CODES
from foveate.families import families
from foveate.gallery import gallery
from foveate.methods.entries import STANDS_IN, Entry, Verdict

BUDGETS = {"count": "required", "optional": "optional; overrides the rule of the method", "none": "not supported"}
SITES = {
    "acquisition": (
        "Before the model reads an image",
        "The model reads a smaller image and may ask for more of the original: [Looking again](looking-again.md).",
    ),
    "pre_llm": ("Before the language model", "Select or merge the output tokens of the encoder."),
    "decoder": (
        "Inside the language model",
        "Act before the decoder layers that a plan names after `@`, by default before those of the paper.",
    ),
    "encoder": ("Inside the encoder", "Merge tokens between its blocks, which also reduces the cost of the encoder."),
    "connector": (
        "In the connector",
        "Choose the length of a connector that was trained to give several, or map features to a smaller raster.",
    ),
    "image": ("On the image", "Baselines that reduce the resolution of the image."),
    "frames": (
        "On the frames of a clip",
        "Choose frames before the model: `foveate.ask`, `foveate batch` and `foveate serve` follow them.",
    ),
}
#: Symbols of the matrix; a letter gives the reason of a refusal.
MARKS = {"runs": "●", "substitute": "◐"}
MEANINGS = {"runs": "yes", "substitute": f"yes, with a substitute that its paper allows: {STANDS_IN}"}
LETTERS = {
    "needs-cls": "C",
    "needs-clips": "V",
    "needs-first-layer-attention": "F",
    "needs-decoder-layers": "L",
    "needs-nested-connector": "N",
    "needs-one-token-per-patch": "P",
    "needs-one-raster": "R",
    "needs-raster-features": "G",
    "needs-plain-encoder": "E",
}
#: A reason without a letter.
OTHER = "✕"
#: What the user must provide, by the code of the condition.
CONDITIONS = {
    "needs-weights": "weights",
    "needs-text-features": "text",
    "needs-nested-connector": "connector",
    "needs-asking-model": "trained",
}

#: What a method uses if it needs no measurement.
NOTHING = {"acquisition": "what the model writes", "decoder": "the hidden states of the layers"}


def pages() -> dict[str, str]:
    """Both pages by their path under `docs/`."""
    entries = gallery()
    return {"methods.md": _gallery(entries), "matrix.md": _matrix(entries)}


def _gallery(entries: list[Entry]) -> str:
    lines = [
        "# Methods",
        "",
        "The methods that a plan can name, generated from the code by `make docs`; `foveate methods` prints the same.",
        "Each has a page with its arguments, cost and measured accuracy. The [matrix](matrix.md) shows on which",
        "models each method runs, [Which method?](which-method.md) helps to choose one, and",
        "[How compress works](how-compress-works.md) explains how plans are applied. Mechanisms are the classes of a",
        "survey ([arXiv 2507.20198](https://arxiv.org/abs/2507.20198)): transformation (pooling, resampling),",
        "similarity (similar tokens are merged or dropped), attention (tokens that receive little attention are",
        "dropped or merged), query (the question or learned queries decide). Baselines have the mechanism `control`.",
    ]
    for site in dict.fromkeys([*SITES, *(entry.site for entry in entries)]):
        methods = [entry for entry in entries if entry.site == site]
        if methods:
            title, line = SITES.get(site, (site, ""))
            lines += [
                "",
                f"## {title}",
                "",
                line,
                "",
                "| method | description | mechanism | runs on |",
                "|---|---|---|---|",
            ]
            lines += [
                f"| [`{entry.name}`](methods/{entry.name}.md) | {escaped(entry.summary)} | "
                f"{', '.join(entry.mechanism)} | {len(entry.runs_on)} of {len(entry.families)} families |"
                for entry in methods
            ]
    lines += ["", "## Outside of plans", ""]
    lines += ["Methods for decoding and for KV caches, and modules of trained models.", ""]
    lines += ["| method | description | site |", "|---|---|---|"]
    lines += [
        f"| [`{card.name}`](methods/{card.name}.md) | {escaped(card.summary)} | {card.site} |" for card in cards()
    ]
    return "\n".join([*lines, ""])


def facts_of_card(card: Card) -> dict[str, str]:
    """The rows of the table on a card's page."""
    return {
        "paper": escaped(f"{card.title}, {link(card.paper)}"),
        "site": card.site,
        "mechanism": ", ".join(card.mechanism),
        "modality": ", ".join(card.modality),
        "trained": "yes" if card.trained else "no",
        "use": card.use,
    }


def link(paper: str) -> str:
    """A paper as a link, if it is on arXiv."""
    number = paper.removeprefix("arXiv ")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else paper


def escaped(text: str) -> str:
    """Markdown text in which [CLS] is not a link and bars do not separate columns."""
    return text.replace("[CLS]", "\\[CLS\\]").replace("|", "\\|")


def _matrix(entries: list[Entry]) -> str:
    """The matrix, with one symbol per cell and one line per method, independent of other methods."""
    known = families()
    heads = [re.sub("[ -]", "<br>", family.title) for family in known.values()]
    rows = []
    for entry in entries:
        cells = (_cell(entry.families[name]) for name in known)
        required = dict.fromkeys(code for verdict in entry.families.values() for code in verdict.conditions)
        rows.append(f"| `{entry.name}` | {' '.join(CONDITIONS[code] for code in required)} | {' | '.join(cells)} |")
    legend = [f"- {MARKS[outcome]}: {line}" for outcome, line in MEANINGS.items()]
    legend += [f"- **{letter}**: no, it {CODES[code]}" for code, letter in LETTERS.items()]
    conditions = [f"{word}, if it {CODES[code]}" for code, word in CONDITIONS.items()]
    return "\n".join(
        [
            "# Methods and families",
            "",
            "Which [method](methods.md) runs on which [model family](support.md), generated from the code by",
            "`make docs`; `foveate methods NAME` describes one method. In a cell with two symbols, the first is for",
            "models whose encoder has a \\[CLS\\] token (CLIP), the second for models without one (SigLIP).",
            "",
            f"| method | requires | {' | '.join(heads)} |",
            f"|---|---|{':---:|' * len(heads)}",
            *rows,
            "",
            *map(escaped, legend),
            "",
            "*Requires* is what you must provide:",
            f"{'; '.join(conditions)}.",
            "",
        ]
    )


def _cell(verdict: Verdict) -> str:
    mark = MARKS[verdict.outcome] if verdict.outcome != "no" else LETTERS.get(verdict.code, OTHER)
    return mark if verdict.without_cls is None else f"{mark} {_cell(verdict.without_cls)}"
