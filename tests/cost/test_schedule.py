"""Closed formulas of whole models: against the counter on real classes, and views against real processors."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionProcessor,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    Qwen3Config,
)

from foveate import compat
from foveate import cost as cost_of
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.cost.cost import encoder, stage, windows
from foveate.cost.models import RELEASED
from foveate.cost.shapes import Text, families
from tests.families.zoo import IMAGE, llama, zoo
from tests.refusals import refused

SIZES = [(336, 336), (1024, 768), (300, 1400), (1920, 1080), (640, 640)]
COUNTED = ["llava", "llava-siglip", "llava-next", "llava-onevision", "llava-uhd", "llava-uhd-windows", "internvl",
           "qwen2-vl", "qwen2.5-vl", "qwen3-vl"]  # fmt: skip


def sequences(model: Any, inputs: dict[str, Any]) -> tuple[Grid, ...]:
    """The patches that the encoder gets, read from what it is called with."""
    for name in ("image_grid_thw", "grid_hws", "target_sizes"):
        if name in inputs:
            return tuple(Grid(*sizes[-2:]) for sizes in inputs[name].tolist())
    patch = model.config.vision_config.patch_size
    patch = patch if isinstance(patch, int) else patch[0]
    *_, height, width = inputs["pixel_values"].shape
    return (Grid(height // patch, width // patch),) * (inputs["pixel_values"].numel() // (3 * height * width))


@pytest.mark.parametrize("name", COUNTED)
def test_whole_models_cost_what_the_counter_counts(name):
    """Encoder, connector and prefill of small models of the real classes."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, [[(3, 4)]])
    tokens = int((inputs["input_ids"] == IMAGE).sum())
    shape = cost_of.shape_of(model.config)
    assert shape.kind in families()
    processed = cost_of.ProcessedImage(sequences(model, inputs), tokens)
    run = cost_of.Run(processed, (0,) * shape.vision.blocks, (tokens,) * shape.text.layers)
    expected = cost_of.cost(shape, run, inputs["input_ids"].shape[1] - tokens)
    with torch.inference_mode():
        counted = flops.count(lambda: model(**inputs, logits_to_keep=1))
    assert abs(counted - expected.total) <= 0.02 * counted
    # Without attention the formula is well below: the tolerance would show it.
    blind = cost_of.cost(shape, run, inputs["input_ids"].shape[1] - tokens, cost_of.Convention("none"))
    assert blind.total < 0.97 * counted


@pytest.mark.skipif(not compat.MINICPM_READS_SEVERAL_SHAPES, reason="transformers before 5.20 fails in its own code")
def test_early_compressor_and_its_connector():
    """MiniCPM-V 4.6's encoder, which is LLaVA-UHD v4's, on two views at once."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 4}  # fmt: skip
    config = MiniCPMV4_6Config(
        text_config=Qwen3Config(**llama()), vision_config=vision, insert_layer_id=0, image_token_id=IMAGE
    )
    model = MiniCPMV4_6ForConditionalGeneration(config).eval()
    grids = (Grid(8, 8), Grid(4, 12))
    pixels = torch.randn(1, 3, 4, 4 * sum(grid.size for grid in grids))
    call = {"pixel_values": pixels, "target_sizes": torch.tensor(grids)}
    with torch.inference_mode():
        counted = flops.count(lambda: model.model.get_image_features(**call))
    shape = cost_of.shape_of(config)
    run = cost_of.Run(cost_of.ProcessedImage(grids, 7), (0, 0, 0), (7, 7))
    parts = cost_of.cost(shape, run, 1).parts
    assert abs(counted - parts["encoder"] - parts["connector"]) <= 0.02 * counted


def test_released_sizes_on_the_meta_device():
    """LLaVA-1.5-7B itself, without memory: encoder, connector, prefill and the next token."""
    config = RELEASED["llava-1.5-7b"]()
    config.text_config.num_hidden_layers = 2  # layers are alike
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config).eval()
        pixels, prompt = torch.zeros(1, 3, 336, 336), torch.zeros(1, 640, 4096)
        with torch.no_grad():
            tower = flops.count(lambda: model.model.vision_tower(pixels))
            connected = flops.count(lambda: model.model.multi_modal_projector(torch.zeros(576, 1024)))
            caches: list[Any] = []
            prefill = flops.count(
                lambda: caches.append(model.model.language_model(inputs_embeds=prompt, use_cache=True))
            )
            cache = compat.cache_of(caches[0])
            keys = cache.layers[0].keys.numel()
            one = torch.zeros(1, 1, 4096)
            step = flops.count(lambda: model.model.language_model(inputs_embeds=one, **compat.cache_argument(cache)))
            head = flops.count(lambda: model.lm_head(one))
    shape = cost_of.shape_of(config)
    processed = cost_of.processed_image(config, 640, 480)
    cost = cost_of.cost(shape, cost_of.follow(None, shape, processed), 64)
    assert abs(cost.parts["encoder"] - tower) <= 1e-4 * tower
    assert cost.parts["connector"] == connected
    assert abs(cost.total - tower - connected - head - prefill) <= 1e-4 * prefill
    assert abs(cost.decode - step - head) <= 1e-4 * step
    assert cost.cached == 2 * 2 * keys  # keys and values of two layers
    assert cost.cached_image * 640 == cost.cached * 576


def test_fewer_key_heads_and_wide_heads():
    """Grouped queries cost full attention but narrow projections and a narrow cache; the width of heads is free."""
    text = Text(width=8, hidden=12, layers=1, heads=4, kv_heads=1, head=3, vocabulary=5)
    run = cost_of.Run(cost_of.ProcessedImage((), 0), (), (6,))
    cost = cost_of.cost(cost_of.Model("none", text), run, 4)
    assert cost.parts["projections"] == 2 * 10 * 8 * (12 + 3 + 3 + 12)
    assert cost.parts["attention"] == 4 * 10 * 10 * 12
    assert cost.parts["mlp"] == 2 * 10 * 8 * 12 * 3
    assert cost.parts["output layer"] == 2 * 8 * 5
    assert (cost.cached, cost.cached_image) == (2 * 3 * 10, 2 * 3 * 6)
    causal = cost_of.cost(cost_of.Model("none", text), run, 4, cost_of.Convention("causal", 2, "all"))
    assert causal.parts["attention"] == 4 * 12 * sum(range(1, 11))
    assert causal.parts["mlp"] == 2 * 10 * 8 * 12 * 2
    assert causal.parts["output layer"] == 2 * 10 * 8 * 5
    assert (cost.macs, cost.total % 2) == (cost.total // 2, 0)


def test_windows_cover_the_grid():
    assert sorted(windows(Grid(5, 7), 4)) == sorted([16, 12, 4, 3])
    assert sum(windows(Grid(54, 74), 8)) == 54 * 74


def test_merging_between_attention_and_mlp():
    shape = cost_of.Vision(width=4, hidden=6, blocks=2, patch_values=3, cls=1)
    whole = flops.linear(8, 3, 4) + flops.linear(9, 4, 16) + flops.attention([9], 4)
    merged = whole + flops.linear(6, 4, 12) + flops.linear(6, 4, 16) + flops.attention([6], 4) + flops.linear(6, 4, 12)
    assert encoder(shape, Grid(2, 4), (3, 0)) == merged
    assert stage("average", 16, shape) == 0


@pytest.mark.parametrize("name", ["llava-next-7b", "llava-onevision-7b"])
@pytest.mark.parametrize("size", [*SIZES, (1, 1), (4000, 350)])
def test_tiles_are_those_of_the_processor(name, size):
    config = RELEASED[name]()
    tile, patch = config.vision_config.image_size, config.vision_config.patch_size
    processor = {"llava_next": LlavaNextProcessor, "llava_onevision": LlavaOnevisionProcessor}[config.model_type]
    fields = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
        patch_size=patch,
        num_additional_image_tokens=0,
        num_image_tokens=(tile // patch) ** 2,
        vision_aspect_ratio=getattr(config, "vision_aspect_ratio", None),
    )
    fields._get_unpadded_features = partial(processor._get_unpadded_features, fields)
    processed = cost_of.processed_image(config, *size)
    assert processed.tokens == processor._get_number_of_features(fields, size[1], size[0], tile, tile)


def picture(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES[:3])
@pytest.mark.parametrize("name", ["qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"])
def test_patches_are_those_of_qwens_processor(name, size):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    config = RELEASED[name]()
    processor = Qwen2VLImageProcessorPil(
        patch_size=config.vision_config.patch_size, size={"shortest_edge": 65536, "longest_edge": 400 * 28 * 28}
    )
    (expected,) = processor(picture(size), return_tensors="pt")["image_grid_thw"].tolist()
    processed = cost_of.processed_image(config, *size, processor)
    assert [1, *processed.grids[0]] == expected
    assert (processed.tokens, processed.raster.size) == (expected[1] * expected[2] // 4,) * 2


@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_those_of_internvls_processor(size):
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    processor = GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=12
    )
    tiles = len(processor(picture(size), return_tensors="pt")["pixel_values"])
    processed = cost_of.processed_image(RELEASED["internvl3-8b"](), *size)
    assert (len(processed.grids), processed.tokens) == (tiles, 256 * tiles)


@pytest.mark.parametrize("size", [(300, 200), *SIZES[1:4]])
def test_slices_are_those_of_minicpms_processor(size):
    from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil

    processor = MiniCPMV4_6ImageProcessorPil()
    expected = processor(picture(size), return_tensors="pt")["target_sizes"].tolist()
    processed = cost_of.processed_image(RELEASED["llava-uhd-v4"](), *size, processor)
    assert sorted(map(list, processed.grids)) == sorted(expected)
    assert processed.tokens == sum(rows * columns // 16 for rows, columns in expected)


def test_native_resolution_is_that_of_the_embedded_processor():
    model = cost_of.named(None)
    for size in SIZES:
        processed = cost_of.processed_image(model.config, *size, model.images)
        wide, high = model.images.target_size(*size)
        assert processed.grids[0] == (high // model.images.patch_size, wide // model.images.patch_size)


def test_tokens_of_every_layer():
    def kept(plan: str, tokens: int = 576, layers: int = 32) -> list[int]:
        return list(cost_of.tokens_per_layer(Plan.of(plan).steps, tokens, layers))

    assert kept("fastv:50%@2") == [576] * 2 + [288] * 30
    assert kept("FastV:64@0") == [64] * 32
    assert kept("fastv:50%") == kept("fastv:50%@2")  # where the papers act
    assert kept("pyramiddrop:50%") == kept("pyramiddrop:50%@8,16,24")
    assert kept("pyramiddrop:50%@8,16,24") == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    assert kept("fastervlm:192 + fastv:50%@2") == [192] * 2 + [96] * 30
    assert kept("fastv:100@1 + pyramiddrop:50%@1,3", layers=4) == [576, 50, 50, 25]
    assert kept("random:1000") == [576] * 32


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("fastv@2", "needs a budget"),
        ("fastv:50%@28", "layers 0 to 27"),
        ("fastv:50%@8,4", "must grow"),
        ("pyramiddrop:50%@8 + fastv:50%@2", "must grow"),
        ("fastv:50%@2 + random:64", "must come before"),
        ("prumerge", "give it a budget"),
        ("divprune:64@2", "leave @ out"),
        ("fastvv:50%@2", "did you mean fastv"),
        ("tome:64", "needs every patch"),
        ("random:64 + downsample:32", "must come first"),
        ("scene:16 + random:64", "scene:16 chooses frames of a clip"),
    ],
)
def test_plans_that_cannot_be_counted_say_why(plan, message):
    config = RELEASED["qwen2-vl-7b"]()
    shape = cost_of.shape_of(config)
    with pytest.raises(FoveateError, match=message):
        cost_of.follow(Plan.of(plan), shape, cost_of.processed_image(config, 1024, 768))


def test_plans_before_the_decoder():
    config = RELEASED["llava-1.5-7b"]()
    shape, processed = cost_of.shape_of(config), cost_of.processed_image(config, 640, 480)
    full_model = cost_of.cost(shape, cost_of.follow(None, shape, processed), 64)

    def counted(plan: str) -> cost_of.Cost:
        return cost_of.cost(shape, cost_of.follow(Plan.of(plan), shape, processed), 64)

    selected, merged, small = counted("random:144"), counted("tome:144"), counted("downsample:144")
    # All three leave the decoder the same, the encoder different work.
    assert selected.parts["encoder"] == full_model.parts["encoder"]
    assert small.parts["encoder"] < merged.parts["encoder"] < full_model.parts["encoder"]
    for cost in (selected, merged, small):
        assert cost.parts["mlp"] == selected.parts["mlp"] and cost.cached_image == 144 * 32 * 2 * 4096
    assert small.parts["connector"] * 4 == full_model.parts["connector"]


def test_a_filter_before_the_projector_and_after_the_merger():
    """LLaVA's projector maps what the filter leaves; Qwen's merger has run by then. The encoder costs the same."""
    for name, plan, tokens, share in (
        ("llava-1.5-7b", "fourier:36", 36, 36 / 576),
        ("llava-1.5-7b", "fourier(ratio=0.5)", 144, 144 / 576),
        ("qwen2.5-vl-7b", "fourier", 16 * 16, 1.0),
    ):
        config = RELEASED[name]()
        shape, processed = cost_of.shape_of(config), cost_of.processed_image(config, 672, 672)
        runs = [cost_of.follow(chosen, shape, processed) for chosen in (None, Plan.of(plan))]
        assert set(runs[1].kept) == {tokens}
        full, filtered = (cost_of.cost(shape, run, 64).parts for run in runs)
        assert filtered["encoder"] == full["encoder"]
        assert filtered["connector"] == pytest.approx(share * full["connector"])
    with refused("needs-raster-features"):
        config = RELEASED["llava-next-7b"]()
        cost_of.follow(Plan.of("fourier:36"), cost_of.shape_of(config), cost_of.processed_image(config, 672, 672))


def test_merging_and_stages_of_other_models_are_refused():
    config = RELEASED["llava-next-7b"]()
    shape, processed = cost_of.shape_of(config), cost_of.processed_image(config, 640, 480)
    for plan, code in {
        "tome:64": "needs-fraction-for-tiles",
        "tome:25%": "needs-one-raster",
        "downsample:64": "needs-one-raster",
    }.items():
        with refused(code):
            cost_of.follow(Plan.of(plan), shape, processed)


def test_decoders_that_do_not_attend_everywhere_are_refused():
    model = zoo()["qwen3.5"].model()
    with pytest.raises(FoveateError, match="linear_attention; counted are decoders"):
        cost_of.shape_of(model.config)


def test_a_family_without_a_formula_has_a_decoder():
    shape = cost_of.shape_of(zoo()["mistral3"].model().config)
    assert shape.vision is None and shape.text.layers == 2
    with pytest.raises(FoveateError, match="give the tokens with --tokens"):
        cost_of.processed_image(zoo()["mistral3"].model().config, 100, 100)


@pytest.mark.parametrize("size", [(0, 10), (10, 10**9)])
def test_sizes_that_are_none(size):
    with pytest.raises(FoveateError, match="sides are 1 to"):
        cost_of.processed_image(RELEASED["llava-1.5-7b"](), *size)


def test_names():
    assert cost_of.named("qwen2.5-vl-3b").config.text_config.num_hidden_layers == 36
    with pytest.raises(FoveateError, match="did you mean llava-1.5-7b"):
        cost_of.named("llava-1.5-7")
