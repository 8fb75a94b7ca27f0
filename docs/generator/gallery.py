"""The pages of methods: the gallery, and on which families each method runs. Computed from the registries."""

from __future__ import annotations

from foveate.cards import Card, cards
from foveate.families import families
from foveate.gallery import Entry, gallery

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
MARKS = {"runs": "yes", "substitute": "substitute", "no": "no"}


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
        for kind, substitute in entry.kinds.items()
    ]
    runs = sum(verdict.outcome != "no" for verdict in entry.families.values())
    facts = {
        "paper": _escaped(entry.title + (f", {_link(entry.paper)}" if entry.paper else "")),
        "mechanism": ", ".join(entry.mechanism),
        "modality": ", ".join(entry.modality),
        "needs": ", ".join(needs) or NOTHING.get(entry.site, "nothing but the tokens"),
        "budget": BUDGETS[entry.budget],
        "exact count from sizes": "yes" if entry.static_count else "no",
        "trained": "yes" if entry.trained else "no",
        "arguments": ", ".join(f"`{name}={value!r}`" for name, value in entry.arguments.items()) or "none",
        "runs on": f"{runs} of {len(entry.families)} families",
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
    """Methods by families, and below it every reason once."""
    known = families()
    reasons: dict[str, int] = {}
    rows = []
    for entry in entries:
        cells = []
        for name in known:
            verdict = entry.families[name]
            note = f" ({reasons.setdefault(verdict.why, len(reasons) + 1)})" if verdict.why else ""
            cells.append(MARKS[verdict.outcome] + note)
        rows.append(f"| `{entry.name}` | {' | '.join(cells)} |")
    titles = [known[name].title for name in known]
    types = [f"- {family.title}: {', '.join(f'`{kind}`' for kind in family.model_types)}" for family in known.values()]
    notes = [f"{number}. {_escaped(why[0].upper() + why[1:])}." for why, number in reasons.items()]
    return "\n".join(
        [
            "# Methods and families",
            "",
            "Which [method](methods.md) runs on which family of models, generated from the code by `make docs`.",
            "*Substitute*: the encoder has no \\[CLS\\] token, and what the method's paper allows in its place is used",
            "and named in the report. The numbers stand for the reasons below the table.",
            "",
            f"| method | {' | '.join(titles)} |",
            f"|---|{'---|' * len(titles)}",
            *rows,
            "",
            *notes,
            "",
            "## Model types",
            "",
            "What `config.model_type` says in the models of each family:",
            "",
            *types,
            "",
        ]
    )
