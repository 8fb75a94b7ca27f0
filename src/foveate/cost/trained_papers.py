"""Published costs of connectors and encoders that are trained, see `foveate.cost.papers`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from torch import nn

from foveate.core.plan import Plan
from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.cost.cost import Convention, Cost, cost, encoder
from foveate.cost.counted import CountedEncoder, count, empty, without_data
from foveate.cost.models import RELEASED, foveate_llava
from foveate.cost.preprocessing import ProcessedImage, processed_image
from foveate.cost.schedule import Run, follow
from foveate.cost.shapes import Vision, shape_of
from foveate.cost.video_papers import video_claims
from foveate.models.encoders.convllava import ConvLLaVAConfig
from foveate.models.encoders.lookupvit import LookupViTConfig
from foveate.models.encoders.sit import SiTConfig
from foveate.models.encoders.stvit import STViTConfig, STViTForImageClassification
from foveate.published import TEXT, Claim, spanned

#: The language model without what comes before it.
ALONE = Convention(encoder=False, connector=False)
#: Tokens of text that M3's paper states.
M3_TEXT = 30
#: GMACs of SiT in the authors' README, of the student and of its teacher.
SIT = {"t": (1.0, 3.5), "xs": (1.5, 5.5), "s": (4.0, 5.5), "m": (8.1, 11.9), "l": (34.4, 56.1)}
#: GMACs of STViT in the authors' README, of images of 224 x 224 and of 384 x 384 pixels.
STVIT = {"small": (4.4, 14.1), "base": (9.9, 32.5), "large": (15.6, 49.7)}
#: Operations per value that the counter of STViT's authors has for norms.
NORMS = {nn.LayerNorm: 5, nn.BatchNorm2d: 2}
#: ViT-B/16.
VIT_B = Vision(width=768, hidden=3072, blocks=12, patch_values=3 * 16**2, cls=1)
#: ConvNeXt-L, whose stages are the first four of ConvLLaVA's.
CONVNEXT_L: dict[str, Any] = {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536]}


@cache
def trained_claims() -> tuple[Claim, ...]:
    """Return the claims of papers about connectors and encoders; counted once, because it takes seconds."""
    return (*_tokenpacker(), *_m3(), *_mqt(), *_convllava(), *_lookupvit(), *_sit(), *_stvit(), *video_claims())


@cache
def connector_cost(
    connector: str, text: int, convention: Convention | None = None, plan: str | None = None, **options: Any
) -> Cost:
    """Cost of LLaVA-1.5-7B with a connector of foveate; "llava" is the model itself."""
    config = RELEASED["llava-1.5-7b"]() if connector == "llava" else foveate_llava(connector, **options)
    shape, processed = shape_of(config), processed_image(config, 336, 336)
    return cost(shape, follow(None if plan is None else Plan.of(plan), shape, processed), text, convention)


def _tokenpacker() -> Iterator[Claim]:
    for scale, published in ((2, 144), (3, 64), (4, 36)):
        tokens = processed_image(foveate_llava("tokenpacker", scale=scale), 336, 336).tokens
        yield Claim("TokenPacker", "arXiv 2407.02392, README", f"336 px, 1/{scale**2} of the tokens", published, tokens,
                    "tokens", "24 x 24 patches of CLIP-L/14")  # fmt: skip


def _m3() -> Iterator[Claim]:
    convention = f"FLOPs of the language model, {M3_TEXT} tokens of text as stated, output layer once"
    for tokens, published in ((576, 8.0), (144, 2.2), (36, 0.9), (9, 0.5), (1, 0.4)):
        ours = connector_cost("m3", M3_TEXT, ALONE, f"m3:{tokens}").total / 1e12
        yield Claim("M3", "arXiv 2405.17430, table 9", f"LLaVA-1.5-7B, {tokens} token{'s' if tokens > 1 else ''}",
                    published, ours, "T", convention, decimals=1)  # fmt: skip


def _mqt() -> Iterator[Claim]:
    def times(text: int, convention: Convention) -> float:
        before = connector_cost("llava", text, convention)
        return before.total / connector_cost("mqt", text, convention, "mqt:16").total

    what, source = "LLaVA-1.5-7B, 576 to 16 tokens: times fewer FLOPs", "arXiv 2405.19315, abstract"
    for convention, words in ((ALONE, "language model"), (Convention(), "with encoder and connector")):
        yield Claim("MQT", source, what, 8.0, unit="x", convention=f"{words}; {TEXT} tokens of text", open=True,
                    decimals=0, **spanned(partial(times, convention=convention)))  # fmt: skip
    yield Claim("MQT", source, what, 8.0, times(0, ALONE), "x", "language model, image tokens alone", open=True,
                decimals=0)  # fmt: skip


def _convllava() -> Iterator[Claim]:
    source = "arXiv 2405.15738"
    for fields, stages, table, published in (
        (CONVNEXT_L, "four", 3, {512: 256, 768: 576}),
        ({}, "five", 4, {768: 144, 1024: 256, 1536: 576}),
    ):
        for side, tokens in published.items():
            ours = ConvLLaVAConfig(image_size=side, **fields).output_grid(side, side).size
            yield Claim("ConvLLaVA", f"{source}, table {table}", f"{side} px, {stages} stages", tokens, ours, "tokens",
                        "tokens of the last stage")  # fmt: skip
    small = CountedEncoder(ConvLLaVAConfig(image_size=224, **CONVNEXT_L))
    ours = (small.flops(Grid(56, 56)) + flops.linear(1, 1536, 1000)) / 2e9
    yield Claim("ConvLLaVA", "arXiv 2201.03545, table 1", "ConvNeXt-L, 224 px", 34.4, ours, "G",
                "MACs of matrix products and convolutions, with the classifier")  # fmt: skip
    text = shape_of(RELEASED["llava-1.5-7b"]())
    assert isinstance(text.vision, Vision)
    patches = Grid(1536 // 14, 1536 // 14)
    four, five = (CountedEncoder(ConvLLaVAConfig(**fields)) for fields in (CONVNEXT_L, {}))
    towers = {"vit": (patches.size, encoder(text.vision, patches))}
    for name, tower in (("four", four), ("five", five)):
        towers[name] = (tower.config.output_grid(1536, 1536).size, tower.flops(Grid(384, 384)))

    def total(name: str, encoded: bool) -> int:
        tokens, before = towers[name]
        run = Run(ProcessedImage((), tokens), (), (tokens,) * text.text.layers)
        return cost(text, run, 0, Convention(head="none", encoder=False, connector=False)).total + encoded * before

    for what, published, before, after in (
        ("ViT-L/14 over ConvNeXt-L", 8.0, "vit", "four"),
        ("four stages over five", 6.0, "four", "five"),
    ):
        for encoded, words in ((False, "language model, image tokens alone"), (True, "with the encoder")):
            yield Claim("ConvLLaVA", f"{source}, section 3.1", f"1536 px, {what}: times fewer FLOPs", published,
                        total(before, encoded) / total(after, encoded), "x", f"{words}; Vicuna-7B",
                        open=True)  # fmt: skip


def _lookupvit() -> Iterator[Claim]:
    full = encoder(VIT_B, Grid(14, 14))
    for side in (3, 5, 7, 10):
        ours = full / CountedEncoder(LookupViTConfig(compressed_side=side)).flops(Grid(14, 14))
        yield Claim("LookupViT", "arXiv 2407.12753, abstract", "ViT-B/16, 224 px: times fewer FLOPs", 2.0, ours, "x",
                    f"{side} x {side} compressed tokens, with the light MLP that is chosen here",
                    open=True)  # fmt: skip


def _sit() -> Iterator[Claim]:
    for size, numbers in SIT.items():
        for published, slimming in zip(numbers, (True, False), strict=True):
            config = SiTConfig.of_size(size, slimming=slimming, reverse_modules=False)
            side = config.image_size // config.patch_size
            ours = CountedEncoder(config).flops(Grid(side, side)) + flops.linear(1, config.hidden_size, 1000)
            what = f"SiT-{size.upper()}" if slimming else f"teacher of SiT-{size.upper()}"
            yield Claim("SiT", "arXiv 2111.12624, README", what, published, ours / 2e9, "G",
                        "MACs of matrix products and convolutions, with the classifier", decimals=1)  # fmt: skip


def _stvit() -> Iterator[Claim]:
    for size, numbers in STVIT.items():
        for side, published in zip((224, 384), numbers, strict=True):
            products, norms = _products_and_norms(size, side)
            for ours, words in (
                (products + norms, ", and norms as the authors count them, 5 and 2 operations per value"),
                (products, " alone"),
            ):
                yield Claim("STViT", "arXiv 2211.11167, README", f"STViT-{size[0].upper()}, {side} px", published,
                            ours / 1e9, "G", f"MACs of matrix products and convolutions{words}",
                            decimals=1)  # fmt: skip


def _products_and_norms(size: str, side: int) -> tuple[int, int]:
    """MACs of STViT with its classifier, and operations of its norms."""
    config = STViTConfig.of_size(size, num_labels=1000)
    model = without_data(lambda: STViTForImageClassification(config))
    norms: list[int] = []
    for module in model.modules():
        if type(module) in NORMS:
            module.register_forward_hook(lambda norm, _, output: norms.append(NORMS[type(norm)] * output.numel()))
    products = count(lambda: model(empty(1, 3, side, side))) // 2
    return products, sum(norms)
