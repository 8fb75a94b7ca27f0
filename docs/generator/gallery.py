"""The pages of methods: the gallery, and on which families each method runs. Computed from the registries."""

from __future__ import annotations

import re

from foveate.cards import Card, cards
from foveate.core.errors import CODES
from foveate.families import families
from foveate.gallery import gallery
from foveate.methods.entries import STANDS_IN, Entry, Verdict

BUDGETS = {"count": "needed", "optional": "has its own rule; a budget overrides it", "none": "takes none"}
SITES = {
    "pre_llm": ("Before the language model", "Choose or merge the tokens that the encoder made."),
    "decoder": (
        "Inside the language model",
        "Act before the decoder layers that a plan names after an @; where it names none, where their papers do.",
    ),
    "encoder": ("Inside the encoder", "Merge tokens between its blocks, which makes the encoder cheaper too."),
    "image": ("On the image", "Controls that make the image itself smaller."),
}
#: Symbols of the matrix; of a refusal the letter says why.
MARKS = {"runs": "●", "substitute": "◐"}
MEANINGS = {"runs": "yes", "substitute": f"yes, with a substitute that its paper allows: {STANDS_IN}"}
LETTERS = {
    "needs-cls": "C",
    "needs-first-layer-attention": "F",
    "needs-decoder-layers": "L",
    "needs-one-token-per-patch": "P",
    "needs-one-raster": "R",
}
#: A reason that has no letter.
OTHER = "✕"
#: What a user brings, by the code that says so.
CONDITIONS = {"needs-weights": "weights", "needs-text-features": "text"}

#: What a method reads that asks for nothing to be measured.
NOTHING = {"decoder": "what the layers themselves hold"}


def pages() -> dict[str, str]:
    """Both pages by their path under `docs/`."""
    entries = gallery()
    return {"methods.md": _gallery(entries), "matrix.md": _matrix(entries)}


def _gallery(entries: list[Entry]) -> str:
    lines = [
        "# Methods",
        "",
        "What a plan can name, generated from the code by `make docs`; `foveate methods` prints the same. Which",
        "models each runs on is in the [matrix](matrix.md), how a plan is followed in",
        "[How compress works](how-compress-works.md). The mechanism is one of the classes that surveys of the field",
        "use ([arXiv 2507.20198](https://arxiv.org/abs/2507.20198)): transformation (pooling, resampling), similarity",
        "(what is alike is merged or left out), attention (what little attention goes to), query (what is asked, or",
        "learned queries, decide); controls have none.",
    ]
    for site in dict.fromkeys([*SITES, *(entry.site for entry in entries)]):
        own = [entry for entry in entries if entry.site == site]
        if own:
            title, line = SITES.get(site, (site, ""))
            lines += ["", f"## {title}", "", line]
            for entry in own:
                lines += _entry(entry)
    lines += ["", "## Outside of plans", ""]
    lines += ["What needs fewer visual tokens in decoding, in caches and in a model's build."]
    for card in cards():
        lines += _card(card)
    return "\n".join([*lines, ""])


def _card(card: Card) -> list[str]:
    facts = {
        "paper": _escaped(f"{card.title}, {_link(card.paper)}"),
        "site": card.site,
        "mechanism": ", ".join(card.mechanism),
        "modality": ", ".join(card.modality),
        "trained": "yes" if card.trained else "no",
        "use": card.use,
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return ["", f"### `{card.name}`", "", _escaped(card.summary), "", "| | |", "|---|---|", *rows]


def _entry(entry: Entry) -> list[str]:
    needs = [
        kind.replace("_", " ") + (" (or attention received)" if substitute else "")
        for kind, substitute in entry.needs.items()
    ]
    facts = {
        "paper": _escaped(entry.title + (f", {_link(entry.paper)}" if entry.paper else "")),
        "mechanism": ", ".join(entry.mechanism),
        "modality": ", ".join(entry.modality),
        "needs": ", ".join(needs) or NOTHING.get(entry.site, "nothing but the tokens"),
        "budget": BUDGETS[entry.budget],
        "exact count from sizes": "yes" if entry.static_count else "no",
        "trained": "yes" if entry.trained else "no",
        "arguments": ", ".join(f"`{name}={value!r}`" for name, value in entry.arguments.items()) or "none",
        "runs on": f"{len(entry.runs_on)} of {len(entry.families)} families",
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    return ["", f"### `{entry.name}`", "", _escaped(entry.summary), "", "| | |", "|---|---|", *rows]


def _link(paper: str) -> str:
    number = paper.removeprefix("arXiv ")
    return f"[{paper}](https://arxiv.org/abs/{number})" if number != paper else paper


def _escaped(text: str) -> str:
    """Text whose [CLS] is no link and whose bars are no columns."""
    return text.replace("[CLS]", "\\[CLS\\]").replace("|", "\\|")


def _matrix(entries: list[Entry]) -> str:
    """Methods by families, one symbol a cell; a method is one line, whatever the others are."""
    known = families()
    heads = [re.sub("[ -]", "<br>", family.title) for family in known.values()]
    rows = []
    for entry in entries:
        cells = (_cell(entry.families[name]) for name in known)
        brings = dict.fromkeys(code for verdict in entry.families.values() for code in verdict.conditions)
        rows.append(f"| `{entry.name}` | {' '.join(CONDITIONS[code] for code in brings)} | {' | '.join(cells)} |")
    legend = [f"- {MARKS[outcome]}: {line}" for outcome, line in MEANINGS.items()]
    legend += [f"- **{letter}**: no, it {CODES[code]}" for code, letter in LETTERS.items()]
    brought = [f"{word}, where it {CODES[code]}" for code, word in CONDITIONS.items()]
    return "\n".join(
        [
            "# Methods and families",
            "",
            "Which [method](methods.md) runs on which [family of models](support.md), generated from the code by",
            "`make docs`; `foveate methods NAME` says the same of one method in words. Two symbols: on models whose",
            "encoder has a \\[CLS\\] token (CLIP), then on those whose encoder has none (SigLIP).",
            "",
            f"| method | brings | {' | '.join(heads)} |",
            f"|---|---|{':---:|' * len(heads)}",
            *rows,
            "",
            *map(_escaped, legend),
            "",
            "*Brings* is what you bring along:",
            f"{'; '.join(brought)}.",
            "",
        ]
    )


def _cell(verdict: Verdict) -> str:
    mark = MARKS[verdict.outcome] if verdict.outcome != "no" else LETTERS.get(verdict.code, OTHER)
    return mark if verdict.without_cls is None else f"{mark} {_cell(verdict.without_cls)}"
