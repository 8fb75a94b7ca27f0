"""The page of costs from shapes: the cost of released models, and a comparison with published numbers.

Every number is computed when the page is generated, except the published ones in `foveate.cost.papers`.
"""

from __future__ import annotations

from foveate.core.plan import Plan
from foveate.cost import RELEASED, cost, follow, named, processed_image, shape_of
from foveate.cost.papers import claims, nearest, scores_left_over, slice_saving
from foveate.published import SAME, SPAN, TEXT, Claim
from generator.tables import table

#: Size of the image in the table of models, in pixels, and plans that are compared with the full model.
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
    "TokenPacker": "2407.02392",
    "M3": "2405.17430",
    "MQT": "2405.19315",
    "ConvLLaVA": "2405.15738",
    "LookupViT": "2407.12753",
    "SiT": "2111.12624",
    "STViT": "2211.11167",
    "PVC": "2412.09613",
    "VQToken": "2503.16980",
    "HICom": "2503.16036",
    "Slow-Fast": "2504.01328",
}

#: Explanations for each paper; `_section` fills the `{}` fields.
WORDS = {
    "FastV": "The formula counts multiply-accumulates and an MLP of two matrices; LLaMA's has three, which hardly "
    "changes a ratio. The text does, which is never dropped: with the system prompt of the authors' scripts the "
    "published ratios are reproduced, with image tokens alone they are not.",
    "PyramidDrop": "FLOPs are multiply-accumulates of the language model on image tokens alone, with the third matrix "
    "of the MLP, and without text, encoder and output layer. Stages have a whole number of layers.",
    "LLaVA-UHD v4": "FLOPs are multiply-accumulates of an encoder with 4,900 patches, an image of 980 x 980 px, not "
    "the 1,024 patches of a slice of 448 px. This follows from the two MLPs of the ablation, whose cost depends only "
    "on the number of patches. k = 6 is counted from 0, so 7 blocks process all patches. Window attention is counted "
    "as full attention with a mask; with real windows the encoder costs less than published. Matrix products are "
    "about 1 % below the published totals. The difference is {left:.1f} operations per attention score of the 27 "
    "blocks, the cost of scaling and softmax, so the authors' counter seems to include them. On a slice of 448 px, "
    "where attention is a smaller share, early compression saves {slice:.1f} % of the encoder.",
    "LLaVA-Mini": "A multiply-accumulate is two FLOPs. The published totals grow linearly with the number of tokens: "
    "the counter omits the products of attention (a fused kernel) and includes the encoder, and the output layer at "
    "every position. The length of the text is not published. It follows from the row of 0.96 T, and the other rows "
    "are then reproduced, except that of one layer by a little and that of three, because the published steps between "
    "layers are uneven. The model that is counted is the one of this library, with its compression, and with "
    "pre-fusion its connector also maps all 576 patches. With the products of attention and more text the reduction is "
    "smaller, because the text is not compressed. The memory of an image is not reproduced: keys and values in half "
    "precision take less than published, for 576 tokens and for one, and the paper does not explain the difference.",
    "VisionDrop": "A multiply-accumulate is two FLOPs, with the encoder, and the output layer at every position. The "
    "length of the text is not published; it follows from the row of 9.06 T. For LLaVA-NeXT the newline tokens, "
    "which are not part of the 2,880, explain the number of the full model. The number of the compressed model is "
    "reproduced if they are kept, and not if they are dropped. The stages are those of the released code, scaled.",
    "Fourier-VLM": "36 tokens (6 x 6 of 24 x 24 frequencies) is the smallest setting. The convention of the paper is "
    "unknown: the abstract has one number. With a typical length of text the language model alone is within one "
    "point; without text it is not. The number itself follows from the language model with one length of text, and "
    "with the encoder from a shorter one (rows marked as input); both cost the same within 1 %. The filter acts before "
    "the projector, which then maps 36 tokens.",
    "HiPrune": "The convention is unknown. `Up to 9x` is between the language model on image tokens alone and with "
    "text. It cannot be reached with the five tiles of the encoder, whose cost such a method does not reduce. The "
    "reduction at 192 tokens is between the language model alone and with its encoder.",
    "VFlowOpt": "Retention ratios after the encoder and after layers 9 and 18, as released for 10 %.",
    "TokenPacker": "Numbers of tokens follow from the scale. Those of TokenPacker-HD (about 954, 1,393, 619 and 347) "
    "are means over the authors' data, and follow from no size.",
    "M3": "The paper states 30 tokens of text, and prints one decimal. The number of 144 tokens rounds to 2.3: in the "
    "published table it fits no length of text above 28, and that of 36 tokens none below 30.",
    "MQT": "The convention is unknown: the abstract has one number. The language model alone needs 8 times fewer FLOPs "
    "with a typical length of text. With the encoder and the connector the reduction is smaller, and is reached "
    "with a shorter text.",
    "ConvLLaVA": "Numbers of tokens are equal. Of the encoder's cost the papers print that of ConvNeXt-L, whose stages "
    "are the first four. How the paper estimates the cost of whole models, from which its `almost 8x` and `6x` come, "
    "is not stated; neither the language model alone nor with the encoder gives these ratios at 1536 px, although the "
    "order is that of the paper.",
    "LookupViT": "The abstract says `2x`, not with how many compressed tokens. The width of the light MLP is not "
    "published; here it is half the width of a token. With 5 x 5 compressed tokens the encoder needs about half the "
    "FLOPs of ViT-B/16, with 10 x 10 nearly as many.",
    "SiT": "T, XS and S and their teachers are reproduced to the printed digit. M and L are lower by up to 1 %, as the "
    "authors' counter adds some operations besides products.",
    "STViT": "Reproduced to the printed digit with the operations of norms, which the authors count, except that of "
    "STViT-B at 384 px, which is lower here: the smaller and the larger model at 384 px are reproduced, and so is "
    "STViT-B at 224 px, so that the difference is no other convention.",
    "PVC": "This is PVC of OpenGVLab, which compresses over time. Numbers of tokens are equal; the paper has no FLOPs.",
    "VQToken": "The number of tokens is that of the clusters, whatever the clip.",
    "HICom": "680 tokens for 32 frames are 648 local and 32 global ones, without the newlines that some settings add.",
    "Slow-Fast": "The convention is unknown: the abstract has one number. The language model has readers of the slow "
    "tokens in every eighth layer, and the fast tokens do not become more, so that the cost grows little.",
}


def pages() -> dict[str, str]:
    """The page by its path under `docs/`."""
    published = claims()
    lines = [
        "# FLOPs and cache from shapes",
        "",
        "`foveate flops` computes the cost of a model from its shapes, without running it. This page is generated from",
        "the code by `make docs`. It shows the cost of released models, and a comparison with published numbers.",
        "",
        '    foveate flops --model llava-1.5-7b --plan "fastv:50%@2"',
        "    foveate flops --model qwen2.5-vl-7b --image 1920x1080 --plan divprune:25% --json",
        '    foveate flops --model path/of/a/trained/model --plan "mqt:16"',
        "    foveate flops --papers",
        "",
        "FLOPs include matrix products and attention, as in `torch.utils.flop_counter`, and tests compare the",
        "formulas with it on the real classes. Encoders and connectors of foveate have no formulas: their own code",
        "runs under that counter on tensors without data. A multiplication and its addition are two operations",
        "(FLOPs), or one multiply-accumulate (MAC). Attention is counted in full, although half of it is masked;",
        "`--attention causal` counts half. The output layer is counted once. The cost of selecting tokens is not",
        "included; [Benchmarks](../benchmarks/README.md) measures it.",
        "",
        "## Released models",
        "",
        *_models(),
        "",
        "## Published numbers",
        "",
        *_summary(published),
        "",
        "No constant is fitted. A number has several rows below if several conventions were tried. If a paper does",
        f"not state the length of the text, {TEXT} tokens are assumed, and the results for {SPAN[0]} and {SPAN[1]}",
        "tokens are in parentheses. If it follows from one of the paper's own numbers, that number is marked *input*",
        "and confirms nothing. The numbers of LLaVA-UHD v4, PyramidDrop, M3 and ConvLLaVA are from the papers, those",
        "of FastV, of LLaVA-Mini's memory, and of TokenPacker, SiT and STViT from the repositories, the tables of",
        "LLaVA-Mini and VisionDrop and the 58.7 % of HiPrune from summaries that quote the papers, and the others from",
        "abstracts.",
    ]
    for paper in dict.fromkeys(claim.paper for claim in published):
        lines += _section(paper, [claim for claim in published if claim.paper == paper])
    return {"flops.md": "\n".join([*lines, ""])}


def _summary(published: list[Claim]) -> list[str]:
    """For every paper, how many numbers are reproduced, and those that are not."""
    best = nearest(published)
    rows = []
    for paper in dict.fromkeys(claim.paper for claim in best):
        of_paper = [claim for claim in best if claim.paper == paper]
        settled = [claim for claim in of_paper if claim.same and not claim.open]
        tried = [claim for claim in of_paper if claim.same and claim.open]
        missed = [f"{claim.what} ({claim.difference})" for claim in of_paper if not claim.same]
        rows.append([f"[{paper}](#{_anchor(paper)})", *(str(len(group)) for group in (of_paper, settled, tried)),
                     "; ".join(missed) or "-"])  # fmt: skip
    header = ["", "numbers", "reproduced", "only under one of several conventions", "not reproduced"]
    return [
        f"*Reproduced* means within {SAME:.0%}, or {100 * SAME:.0f} points for percentages, or equal after rounding to",
        "the few digits that a paper prints, under a convention that is confirmed by other numbers of the same paper.",
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
        full = cost(shape, follow(None, shape, processed), TEXT)
        vision = full.parts["encoder"] + full.parts["connector"]
        shares = []
        for plan in PLANS:
            after = cost(shape, follow(Plan.of(plan), shape, processed), TEXT)
            shares.append(f"{after.total / full.total:.0%}, {after.cached / full.cached:.0%}")
        rows.append(
            [
                f"`{name}`",
                f"{processed.patches:,}",
                f"{processed.tokens:,}",
                f"{vision / 1e12:.2f}",
                f"{(full.total - vision) / 1e12:.2f}",
                f"{full.decode / 1e9:.1f}",
                f"{2 * full.cached / 2**20:,.0f}",
                *shares,
            ]
        )
    header = ["model", "patches", "tokens", "encoder and connector, TFLOPs", "prefill, TFLOPs", "next token, GFLOPs",
              "cache, MiB", *(f"`{plan}`: FLOPs, cache" for plan in PLANS)]  # fmt: skip
    return [
        f"An image of {IMAGE[0]} x {IMAGE[1]} px with {TEXT} tokens of text, and a KV cache in bfloat16. The columns",
        "of plans show FLOPs to the first token and KV cache relative to the full model.",
        "",
        table(header, rows),
    ]


def _section(paper: str, rows_of_paper: list[Claim]) -> list[str]:
    notes: dict[str, int] = {}
    rows = []
    for claim in rows_of_paper:
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
