"""The page of costs from shapes: what released models cost, and published numbers beside those counted here.

Every number on it is computed when the page is made; only the published ones are written down, in
`foveate.cost.papers`.
"""

from __future__ import annotations

from foveate.core.plan import Plan
from foveate.cost import RELEASED, cost, follow, named, processed_image, shape_of
from foveate.cost.papers import (
    SAME,
    SPAN,
    TEXT,
    Claim,
    claims,
    nearest,
    scores_left_over,
    slice_saving,
)
from generator.tables import table

#: Size of the image in the table of models, in pixels, and plans beside the full model.
IMAGE = (1024, 768)
PLANS = ("random:25%", "fastv:50%@2")

LINKS = {
    "FastV": "2403.06764",
    "PyramidDrop": "2410.17247",
    "LLaVA-UHD v4": "2605.08985",
    "LLaVA-Mini": "2501.03895",
    "VisionDrop": "2506.22283",
    "Fourier-VLM": "2508.06038",
    "HiPrune": "2508.00553",
    "VFlowOpt": "2508.05211",
}

#: What explains the numbers of each paper. `{}` fields are filled by `_facts`.
WORDS = {
    "FastV": "The formula counts multiply-accumulates and an MLP of two matrices; LLaMA's has three, which hardly "
    "moves a ratio. What moves it is the text, which is never left out: with the system prompt of the authors' "
    "scripts the published ratios follow, with image tokens alone they do not.",
    "PyramidDrop": "What is called FLOPs are multiply-accumulates of the language model on image tokens alone, with "
    "the third matrix of the MLP, without text, encoder and output layer. Stages are a whole number of layers long.",
    "LLaVA-UHD v4": "What is called FLOPs are multiply-accumulates, and of an encoder that sees 4,900 patches, an "
    "image of 980 x 980 px, not the 1,024 patches of a slice of 448 px: the two MLPs of the ablation, which grow with "
    "the number of patches alone, leave no other number. k = 6 is counted from 0, so 7 blocks see all patches. The "
    "window attention is counted as attention of all patches on all, as a mask computes it; in windows that are really "
    "cut out the encoder costs less than published. Matrix products are about a per cent below the published totals; "
    "what is missing is {left:.1f} operations for each attention score of the 27 blocks, which is what scaling and a "
    "softmax take, so the authors' counter seems to see those too. On a slice of 448 px, where attention weighs "
    "less, early compression saves {slice:.1f} % of the encoder.",
    "LLaVA-Mini": "FLOPs are two a multiply-accumulate here. The published totals grow in proportion to the number of "
    "tokens, with no square: the counter does not see the products of attention (a fused kernel), but the encoder, "
    "and the output layer at every position. The length of the text is not said; the row of 0.96 T gives it, and the "
    "others follow, but for the row of three layers: the published steps from layer to layer are uneven there. With "
    "the products of attention counted and more text, the reduction is smaller: text is what is left. The memory of "
    "an image is not reproduced: keys and values in half precision take less than is published, for 576 tokens and "
    "for one alike, and what the rest is is not said.",
    "VisionDrop": "FLOPs are two a multiply-accumulate, with encoder and the output layer at every position. The "
    "length of the text is not said; the row of 9.06 T gives it. For LLaVA-NeXT the newline tokens, which are not "
    "among the 2,880, explain the full model; the compressed one fits if they stay, and does not if they go. "
    "The stages are those of the released code, scaled.",
    "Fourier-VLM": "The paper's convention is not known here. The language model alone with a usual length of text "
    "comes within a point; with the encoder, or without any text, it does not. The length of the text decides.",
    "HiPrune": "The convention is not known here. `Up to 9x` lies between the language model on image tokens alone and "
    "with text; with the five tiles of the encoder, which no such method saves, it is out of reach. The reduction at "
    "192 tokens lies between the language model alone and with its encoder.",
    "VFlowOpt": "Shares of tokens that leave the encoder and pass layers 9 and 18, as released for 10 %.",
}


def pages() -> dict[str, str]:
    """The page by its path under `docs/`."""
    found = claims()
    lines = [
        "# FLOPs and cache from shapes",
        "",
        "What models cost is known without running them. `foveate flops` counts it, and this page, generated from the",
        "code by `make docs`, shows what it gives for released models and how it compares with published numbers.",
        "",
        '    foveate flops --model llava-1.5-7b --plan "fastv:50%@2"',
        "    foveate flops --model qwen2.5-vl-7b --image 1920x1080 --plan divprune:25% --json",
        "    foveate flops --papers",
        "",
        "Counted are matrix products and attention, as `torch.utils.flop_counter` does, and tests hold the formulas",
        "against it on the real classes. A multiplication with its addition is two operations (FLOPs), or one",
        "multiply-accumulate (MAC). Attention is counted in full, although half of it is masked; `--attention causal`",
        "counts the half. The output layer is counted once. What a method spends on choosing tokens is not counted;",
        "[the benchmark](../benchmarks/README.md) measures it.",
        "",
        "## Released models",
        "",
        *_models(),
        "",
        "## Published numbers",
        "",
        *_summary(found),
        "",
        "No constant is fitted. A number stands in several lines below where several conventions were tried. Where",
        f"a paper does not say how long the text is, {TEXT} tokens are taken, and in brackets stands what",
        f"{SPAN[0]} and {SPAN[1]} would give; where one of its own numbers tells, that one is marked *input* and",
        "confirms nothing. The numbers of LLaVA-UHD v4 and PyramidDrop were read in the papers, those of FastV and of",
        "LLaVA-Mini's memory in the repositories, the tables of LLaVA-Mini and VisionDrop and the 58.7 % of HiPrune in",
        "summaries that quote the papers, the others in abstracts.",
    ]
    for paper in dict.fromkeys(claim.paper for claim in found):
        lines += _section(paper, [claim for claim in found if claim.paper == paper])
    return {"flops.md": "\n".join([*lines, ""])}


def _summary(found: list[Claim]) -> list[str]:
    """Of every paper how many numbers follow, and the first of those that do not."""
    best = nearest(found)
    rows = []
    for paper in dict.fromkeys(claim.paper for claim in best):
        own = [claim for claim in best if claim.paper == paper]
        settled = [claim for claim in own if claim.same and not claim.open]
        tried = [claim for claim in own if claim.same and claim.open]
        missed = [f"{claim.what} ({claim.difference})" for claim in own if not claim.same]
        rows.append([f"[{paper}](#{_anchor(paper)})", *(str(len(group)) for group in (own, settled, tried)),
                     "; ".join(missed) or "-"])  # fmt: skip
    header = ["", "numbers", "reproduced", "only under one of several conventions", "not reproduced"]
    return [
        f"*Reproduced* is within {SAME:.0%}, or {100 * SAME:.0f} points for numbers in per cent, under a convention",
        "that other numbers of the same paper settle.",
        "",
        table(header, rows),
    ]


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _models() -> list[str]:
    rows = []
    for name in RELEASED:
        model = named(name)
        shape, processed = shape_of(model.config), processed_image(model.config, *IMAGE)
        full_model = cost(shape, follow(None, shape, processed), TEXT)
        before = full_model.parts["encoder"] + full_model.parts["connector"]
        shares = []
        for plan in PLANS:
            after = cost(shape, follow(Plan.of(plan), shape, processed), TEXT)
            shares.append(f"{after.total / full_model.total:.0%}, {after.cached / full_model.cached:.0%}")
        rows.append(
            [
                f"`{name}`",
                f"{processed.patches:,}",
                f"{processed.tokens:,}",
                f"{before / 1e12:.2f}",
                f"{(full_model.total - before) / 1e12:.2f}",
                f"{full_model.decode / 1e9:.1f}",
                f"{2 * full_model.cached / 2**20:,.0f}",
                *shares,
            ]
        )
    header = ["model", "patches", "tokens", "encoder and connector, TFLOPs", "prefill, TFLOPs", "next token, GFLOPs",
              "cache, MiB", *(f"`{plan}`: FLOPs, cache" for plan in PLANS)]  # fmt: skip
    return [
        f"An image of {IMAGE[0]} x {IMAGE[1]} px with {TEXT} tokens of text, the cache in bfloat16; under a plan the",
        "share of the full model's FLOPs to the first token and of the cache.",
        "",
        table(header, rows),
    ]


def _section(paper: str, own: list[Claim]) -> list[str]:
    notes: dict[str, int] = {}
    rows = []
    for claim in own:
        number = notes.setdefault(claim.convention, len(notes) + 1)
        ours = claim.shown(claim.ours)
        if claim.among is not None:
            ours += f" ({' to '.join(claim.shown(value) for value in claim.among)})"
        difference = "*input*" if claim.input else claim.difference
        rows.append([claim.what, claim.shown(claim.published), ours, difference, f"({number})"])
    facts = {"left": scores_left_over(), "slice": slice_saving()} if "{left" in WORDS[paper] else {}
    introduction = f"[arXiv {LINKS[paper]}](https://arxiv.org/abs/{LINKS[paper]}). {WORDS[paper].format(**facts)}"
    return [
        "",
        f"### {paper}",
        "",
        introduction,
        "",
        table(["", "published", "here", "difference", "convention"], rows),
        "",
        *(f"{number}. {text[0].upper()}{text[1:]}." for text, number in notes.items()),
    ]
