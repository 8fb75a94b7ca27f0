"""Published costs of methods, compared with the closed forms under the closest convention.

No constant is fitted. Where a paper leaves an input open, it is either set for all (`TEXT` tokens of text) or taken
from one of the paper's own numbers, which then is said and which that number cannot confirm. Only the published
numbers are written down here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import isqrt

from foveate.core.plan import Plan
from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.cost.cost import Convention, Cost, cost, encoder
from foveate.cost.models import RELEASED
from foveate.cost.preprocessing import ProcessedImage, processed_image
from foveate.cost.schedule import Run, follow, tokens_per_layer
from foveate.cost.shapes import Model, Vision, shape_of
from foveate.cost.trained_papers import connector_cost, trained_claims
from foveate.published import SPAN, TEXT, Claim, spanned

#: Tokens of the system prompt in the scripts of FastV, which is the text that its formula is used with.
FASTV_TEXT = 36
#: Visual tokens of VisionDrop's four stages of eight layers for a mean of 32 (48 = 1.5 x 32 leave the encoder).
VISIONDROP = (48, 35, 26, 19)


def claims() -> list[Claim]:
    """Return all claims; a number appears once for each convention that was tried."""
    methods = (_fastv, _pyramiddrop, _uhd_v4, _mini, _visiondrop, _fourier, _hiprune, _cache)
    return [*(claim for method in methods for claim in method()), *trained_claims()]


def nearest(computed: Sequence[Claim]) -> list[Claim]:
    """Return the closest computed number for every published one, without inputs."""
    best: dict[tuple[str, str], Claim] = {}
    for claim in computed:
        key = (claim.paper, claim.what)
        if not claim.input and (key not in best or abs(claim.apart) < abs(best[key].apart)):
            best[key] = claim
    return list(best.values())


# What all share


def _model(name: str) -> tuple[Model, ProcessedImage]:
    """Return a released model and its processed square image of 672 px."""
    config = RELEASED[name]()
    return shape_of(config), processed_image(config, 672, 672)


def _run(model: Model, processed: ProcessedImage, kept: int | Sequence[int]) -> Run:
    kept = (kept,) * model.text.layers if isinstance(kept, int) else tuple(kept)
    return Run(processed, (0,) * (model.vision.blocks if model.vision else 0), kept)


def _staged(counts: Sequence[int], layers: int) -> list[int]:
    """Tokens of every layer for stages of equal length."""
    each = layers // len(counts)
    return [counts[min(layer // each, len(counts) - 1)] for layer in range(layers)]


def _planned(plan: str, tokens: int, layers: int) -> tuple[int, ...]:
    return tokens_per_layer(Plan.of(plan).steps, tokens, layers)


def _fewer(before: Cost, after: Cost) -> float:
    return 100 * (1 - after.total / before.total)


# The papers


def _fastv() -> Iterator[Claim]:
    for name, size, kept, published, source in (
        ("llava-1.5-13b", "13B", "K=2, R=50 %", 55.0, "abstract: 45 % fewer"),
        ("llava-1.5-7b", "7B", "K=3, R=50 %", 57.0, "repository"),
    ):
        model, processed = _model(name)
        layer = int(kept[2])
        plan = _planned(f"fastv:50%@{layer}", processed.tokens, model.text.layers)
        formula = Convention(mlp=2, head="none", encoder=False, connector=False)
        for text, convention in (
            (FASTV_TEXT, f"4nd² + 2n²d + 2ndm a layer, n = 576 + {FASTV_TEXT} of the system prompt; K layers whole"),
            (0, "the same, image tokens alone"),
        ):
            before = cost(model, _run(model, processed, processed.tokens), text, formula)
            after = cost(model, _run(model, processed, plan), text, formula)
            yield Claim(
                "FastV",
                f"arXiv 2403.06764, {source}",
                f"LLaVA-1.5-{size}, {kept}: remaining share of the FLOPs",
                published,
                100 * after.total / before.total,
                "%",
                convention,
            )


def _pyramiddrop() -> Iterator[Claim]:
    formula = Convention(head="none", encoder=False, connector=False)
    convention = "4nd² + 2n²d + 3ndm a layer (all three matrices of SwiGLU), which are MACs; image tokens alone"
    model, processed = _model("llava-1.5-7b")
    for stages, published in ((1, 3.82), (3, 2.13), (4, 1.78), (5, 1.38)):
        layers = [model.text.layers // stages * stage for stage in range(1, stages)]
        plan = f"pyramiddrop:50%@{','.join(map(str, layers))}"
        kept = _planned(plan, processed.tokens, model.text.layers) if layers else processed.tokens
        what = f"stages of half the tokens: {stages}" if layers else "full model"
        ours = cost(model, _run(model, processed, kept), 0, formula).macs / 1e12
        yield Claim("PyramidDrop", "arXiv 2410.17247, ablation of stages", f"LLaVA-1.5-7B, {what}", published, ours,
                    "T", convention)  # fmt: skip
    model, processed = _model("llava-next-7b")
    before = cost(model, _run(model, processed, 2880), 0, formula)
    after = cost(
        model, _run(model, processed, _planned("pyramiddrop:50%@8,16,24", 2880, model.text.layers)), 0, formula
    )
    yield Claim("PyramidDrop", "arXiv 2410.17247, abstract", "LLaVA-NeXT-7B, 2,880 tokens, four stages: fewer FLOPs",
                55.0, _fewer(before, after), "%", convention)  # fmt: skip


def _uhd_v4() -> Iterator[Claim]:
    vision = shape_of(RELEASED["llava-uhd-v4"]()).vision
    assert isinstance(vision, Vision)
    plain = replace(vision, stages=())
    grid = Grid(70, 70)
    width, hidden, tokens = vision.width, vision.hidden, grid.size
    source = "arXiv 2605.08985, tables 4 and 5"
    convention = "MACs of 4,900 patches (980 px, patch 14); early compression after block 6 counted from 0"

    def after(block: int, kind: str = "early") -> int:
        return encoder(replace(vision, stages=((block, kind),)), grid) // 2

    plain_flops, pooled, early = encoder(plain, grid) // 2, after(6, "average"), after(6)
    # The masked attention of all 4,900 tokens in place of windows of four.
    masked = (flops.attention([tokens], width) - flops.attention([4] * (tokens // 4), width)) // 2
    unshuffle = flops.linear(tokens // 4, 4 * width, 4 * width) + flops.linear(tokens // 4, 4 * width, width)
    fused = flops.linear(tokens // 4, 4 * width, 4 * hidden) + flops.linear(tokens // 4, 4 * hidden, width)
    projections = flops.linear(tokens, width, 4 * width) + flops.attention([tokens], width)
    rows: list[tuple[str, float, float, str]] = [
        ("encoder without early compression", 3555.1, plain_flops, convention),
        ("encoder of LLaVA-UHD v4", 1573.1, early + masked, f"{convention}; windows as masked full attention"),
        ("encoder of LLaVA-UHD v4", 1573.1, early, f"{convention}; windows of 4 tokens, as they can be run"),
        ("average pooling instead", 1368.7, pooled, convention),
        ("pixel-unshuffle MLP, over average pooling", 1401.2 - 1368.7, unshuffle // 2, convention),
        ("MLP of reused weights, over average pooling", 1490.2 - 1368.7, fused // 2, convention),
        (
            "window attention, over that MLP alone",
            1573.1 - 1490.2,
            projections // 2,
            f"{convention}; as masked full attention",
        ),
    ]
    for block, published in ((3, 1245.1), (9, 1901.1), (15, 2557.0)):
        rows.append((f"compression after layer k = {block}", published, after(block) + masked,
                     f"{convention}; windows as masked full attention"))  # fmt: skip
    for what, published, ours, how_counted in rows:
        yield Claim("LLaVA-UHD v4", source, what, published, ours / 1e9, "G", how_counted)
    share = 100 * (1 - (early + masked) / plain_flops)
    yield Claim("LLaVA-UHD v4", source, "fewer FLOPs in the encoder", 55.75, share, "%", convention)


def scores_left_over() -> float:
    """FLOPs per attention score by which LLaVA-UHD v4's 3555.1 G exceed the matrix products."""
    claim = next(claim for claim in _uhd_v4() if claim.published == 3555.1)
    vision = shape_of(RELEASED["llava-uhd-v4"]()).vision
    assert isinstance(vision, Vision)
    heads = RELEASED["llava-uhd-v4"]().vision_config.num_attention_heads
    return 1e9 * (claim.published - claim.ours) / (vision.blocks * heads * 4900**2)


def slice_saving() -> float:
    """Percentage of encoder FLOPs that early compression saves on a slice of 448 px."""
    vision = shape_of(RELEASED["llava-uhd-v4"]()).vision
    assert isinstance(vision, Vision)
    before, after = (encoder(encoder_shape, Grid(32, 32)) for encoder_shape in (replace(vision, stages=()), vision))
    return 100 * (1 - after / before)


def _mini() -> Iterator[Claim]:
    """Claims of LLaVA-Mini, which all follow from a text length that one of them gives."""
    counted = Convention(attention="none", head="all")
    source = "arXiv 2501.03895, appendix"

    def total(visual: int, text: int, layers: int = 0, convention: Convention = counted) -> int:
        """FLOPs with `visual` tokens in the language model, after `layers` of pre-fusion."""
        if visual == 576:
            return connector_cost("llava", text, convention).total
        return connector_cost("llava_mini", text, convention, size=isqrt(visual), prefusion_layers=layers).total

    empty, slope = total(1, 0), total(1, 1) - total(1, 0)
    text = round((0.96e12 - empty) / slope)
    convention = (
        f"FLOPs of linear layers, encoder and output layer at all positions; no attention products; {text} tokens of "
        "text, from the row of 0.96 T"
    )
    rows: list[tuple[str, float, int, bool]] = [
        ("LLaVA-1.5, 576 tokens", 8.55, total(576, text), False),
        ("1 token, no pre-fusion", 0.96, total(1, text), True),
    ]
    for visual, published in ((16, 1.16), (64, 1.79), (144, 2.85)):
        rows.append((f"{visual} tokens, no pre-fusion", published, total(visual, text), False))
    for layers, published in ((1, 1.21), (2, 1.46), (3, 1.81), (4, 1.96)):
        what = f"1 token, pre-fusion of {layers} layer{'s' if layers > 1 else ''}"
        rows.append((what, published, total(1, text, layers), False))
    for what, published, ours, is_input in rows:
        yield Claim("LLaVA-Mini", source, what, published, ours / 1e12, "T", convention, input=is_input)
    for queries, published in ((1, 2.42), (4, 2.44)):
        width = 1024
        ours = flops.linear(576, width, 2 * width) + flops.linear(queries, width, 2 * width) + 4 * queries * 576 * width
        yield Claim("LLaVA-Mini", source, f"compression by {queries} {'queries' if queries > 1 else 'query'}",
                    published, ours / 1e9, "G", "FLOPs of a cross-attention on 576 tokens of width 1,024")  # fmt: skip
    fewer = 100 * (1 - total(1, text, 4) / total(576, text))
    yield Claim("LLaVA-Mini", "arXiv 2501.03895, abstract", "fewer FLOPs than LLaVA-1.5", 77.0, fewer, "%", convention)
    full = Convention(head="all")

    def with_attention(length: int) -> float:
        return 100 * (1 - total(1, length, 4, full) / total(576, length, 0, full))

    yield Claim("LLaVA-Mini", "arXiv 2501.03895, abstract", "fewer FLOPs than LLaVA-1.5", 77.0, unit="%",
                convention=f"attention products too; {TEXT} tokens of text", **spanned(with_attention))  # fmt: skip


def _visiondrop() -> Iterator[Claim]:
    source = "arXiv 2506.22283, efficiency"
    counted = Convention(head="all")
    model, processed = _model("llava-1.5-7b")
    wide, tiles = _model("llava-next-7b")
    newlines = tiles.tokens - 2880

    def total(tokens: int | Sequence[int], text: int) -> int:
        return cost(model, _run(model, processed, tokens), text, counted).total

    text = min(range(1024), key=lambda length: abs(total(576, length) - 9.06e12))
    convention = f"FLOPs with encoder and output layer at all positions; {text} tokens of text, from the row of 9.06 T"
    few = _staged([2 * count for count in VISIONDROP], model.text.layers)
    many = [5 * count for count in _staged([2 * count for count in VISIONDROP], wide.text.layers)]
    before = cost(wide, _run(wide, tiles, tiles.tokens), text, counted).total
    bare = cost(wide, _run(wide, tiles, many), text, counted).total
    lined = cost(wide, _run(wide, tiles, [count + newlines for count in many]), text, counted).total
    yield Claim(
        "VisionDrop", source, "LLaVA-1.5-7B, 576 tokens", 9.06, total(576, text) / 1e12, "T", convention, input=True
    )
    yield Claim(
        "VisionDrop", source, "LLaVA-1.5-7B, 64 tokens on average", 2.11, total(few, text) / 1e12, "T", convention
    )
    yield Claim("VisionDrop", source, "LLaVA-NeXT-7B, 2,880 tokens", 46.25, before / 1e12, "T",
                f"{convention}; five tiles and {newlines} newline tokens")  # fmt: skip
    for ours, newline_convention in (
        (lined, f"{convention}; the {newlines} newline tokens stay"),
        (bare, f"{convention}; the newline tokens go"),
    ):
        yield Claim("VisionDrop", source, "LLaVA-NeXT-7B, 320 tokens on average", 7.70, ours / 1e12, "T",
                    newline_convention, open=True)  # fmt: skip
        yield Claim("VisionDrop", "arXiv 2506.22283, abstract", "LLaVA-NeXT-7B: times fewer FLOPs", 6.0, before / ours,
                    "x", newline_convention, open=True)  # fmt: skip


def _fourier() -> Iterator[Claim]:
    """Claims of Fourier-VLM at its smallest setting, whose filter acts before the projector."""
    model, processed = _model("llava-1.5-7b")
    source, what, published = "arXiv 2508.06038, abstract", "LLaVA-1.5-7B, 576 to 36 tokens: fewer FLOPs", 83.8
    plan = Plan.of("fourier:36")
    yield from _reduced(model, processed, 576, 36, "Fourier-VLM", source, what, published, plan)
    for convention, words in (
        (Convention(encoder=False, connector=False), "language model"),
        (Convention(), "with the encoder"),
    ):
        runs = [follow(plan_, model, processed) for plan_ in (None, plan)]
        fewer = {
            text: _fewer(*(cost(model, run, text, convention) for run in runs)) for text in range(SPAN[0], SPAN[1] + 1)
        }
        text = min(fewer, key=lambda length: abs(fewer[length] - published))
        yield Claim("Fourier-VLM", source, what, published, fewer[text], "%",
                    f"{words}; {text} tokens of text, from this number", input=True)  # fmt: skip


def _hiprune() -> Iterator[Claim]:
    model, processed = _model("llava-1.5-7b")
    yield from _reduced(model, processed, 576, 192, "HiPrune", "arXiv 2508.00553, later version",
                        "LLaVA-1.5-7B, 576 to 192 tokens: fewer FLOPs", 58.7)  # fmt: skip
    model, processed = _model("llava-next-7b")
    alone = Convention(encoder=False, connector=False)

    def times(text: int, convention: Convention) -> float:
        before, after = (cost(model, _run(model, processed, tokens), text, convention) for tokens in (2880, 320))
        return before.total / after.total

    what, source = "LLaVA-NeXT-7B, 2,880 to 320 tokens: times fewer FLOPs", "arXiv 2508.00553, abstract: up to 9x"
    yield Claim("HiPrune", source, what, 9.0, times(0, alone), "x", "language model, image tokens alone", open=True)
    for convention, words in ((alone, "language model"), (Convention(), "with the encoder")):
        yield Claim("HiPrune", source, what, 9.0, unit="x", convention=f"{words}; {TEXT} tokens of text", open=True,
                    **spanned(partial(times, convention=convention)))  # fmt: skip


def _reduced(
    model: Model,
    processed: ProcessedImage,
    many: int,
    few: int,
    paper: str,
    source: str,
    what: str,
    published: float,
    plan: Plan | None = None,
) -> Iterator[Claim]:
    """Claims about a reduction whose convention a paper leaves open, under four conventions.

    Args:
        model: Its shape.
        processed: The image.
        many: Tokens before.
        few: Tokens after.
        paper: Name of the method.
        source: Place of the number in the paper.
        what: What it is the cost of.
        published: As printed.
        plan: What reduces the tokens; None: something after the connector.
    """
    alone = Convention(encoder=False, connector=False)
    after = _run(model, processed, few) if plan is None else follow(plan, model, processed)
    runs = (_run(model, processed, many), after)
    for convention, length, words in (
        (alone, None, "language model; {} tokens of text"),
        (Convention(), None, "with the encoder; {} tokens of text"),
        (replace(alone, attention="causal"), None, "language model, half of attention; {} tokens of text"),
        (alone, 0, "language model, image tokens alone"),
    ):

        def fewer(text: int, convention: Convention = convention) -> float:
            return _fewer(*(cost(model, run, text, convention) for run in runs))

        numbers = {"ours": fewer(length)} if length is not None else spanned(fewer)
        yield Claim(paper, source, what, published, unit="%", convention=words.format(TEXT), open=True, **numbers)


def _cache() -> Iterator[Claim]:
    model, processed = _model("llava-1.5-7b")
    half = "keys and values of all layers in half precision, 10^6 bytes"
    for tokens, published in ((576, 360.0), (1, 0.6)):
        ours = 2 * cost(model, _run(model, processed, tokens), TEXT).cached_image / 1e6
        yield Claim("LLaVA-Mini", "repository", f"memory of an image of {tokens} token{'s' if tokens > 1 else ''}",
                    published, ours, "MB", half)  # fmt: skip
    model, processed = _model("llava-onevision-7b")
    # Released setting of 10 %: shares that leave the encoder, stay after 9 layers, and after 18.
    leave, first, second = 0.1166, 1.0, 0.6011
    shares = [leave * (first if layer >= 9 else 1) * (second if layer >= 18 else 1) for layer in range(28)]
    kept = [round(share * processed.tokens) for share in shares]

    def fewer(text: int) -> float:
        before, after = (
            cost(model, _run(model, processed, tokens), text).cached for tokens in (processed.tokens, kept)
        )
        return 100 * (1 - after / before)

    yield Claim("VFlowOpt", "arXiv 2508.05211, abstract", "LLaVA-OneVision-7B, 10 % of the tokens: smaller cache",
                89.0, unit="%", convention=f"an image of 672 px and {TEXT} tokens of text", open=True,
                **spanned(fewer))  # fmt: skip
