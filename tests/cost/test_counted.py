"""Costs of models with connectors and encoders of foveate: against the counter on whole models, and by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from foveate import compress
from foveate import cost as cost_of
from foveate.cli import main
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.tokens import Grid
from foveate.cost import flops
from foveate.cost.counted import CountedConnector, CountedEncoder, count, empty
from foveate.models.connectors import all_connectors
from foveate.models.encoders import all_encoders
from foveate.models.llava import ViewImageProcessor
from foveate.models.llava.layouts import FalconLayout, LlavaMiniLayout, LlavaUHDLayout
from tests.models.connectors.small_options import options_of
from tests.models.llava import small_encoder_llava
from tests.models.llava.small_llava import TEXT, pictures, small_config, small_llava, small_processor
from tests.models.llava.test_llava_views import views_processor
from tests.refusals import refused

#: A connector with the plan that chooses its length, and that length of 36.
NESTED = {"m3": ("m3:9", 9), "mqt": ("mqt:5", 5), "tokenflex": ("tokenflex:1", 1), "oryx": ("oryx:25%", 9),
          "fourier": ("fourier:9", 9)}  # fmt: skip


def prompt(processor: Any) -> Any:
    return processor(images=pictures(1), text="what is <image>?", return_tensors="pt")


def counted(model: Any, inputs: Any, plan: str | None = None) -> int:
    """FLOPs to the first token, counted while the model runs."""
    model.requires_grad_(False)
    handle = None if plan is None else compress(model, plan)
    with torch.inference_mode():
        total = flops.count(lambda: model(**inputs, logits_to_keep=1))
    if handle is not None:
        handle.restore()
    return total


def computed(model: Any, inputs: Any, plan: str | None = None, attention: Any = "full") -> cost_of.Cost:
    """The same from the configuration; only the length of the text comes from the inputs."""
    shape, processed = cost_of.shape_of(model.config), cost_of.processed_image(model.config, 640, 480)
    text = int((inputs["input_ids"] != 259).sum())
    assert processed.tokens == inputs["input_ids"].shape[1] - text
    run = cost_of.follow(None if plan is None else Plan.of(plan), shape, processed)
    return cost_of.cost(shape, run, text, cost_of.Convention(attention))


def test_tensors_with_data_are_computed_with():
    results: list[torch.Tensor] = []
    count(lambda: results.extend([torch.arange(4.0) * 2 + 1, torch.arange(4.0) + empty(3, 4)]))
    assert results[0].tolist() == [1, 3, 5, 7]
    assert results[1].is_meta and results[1].shape == (3, 4)


@pytest.mark.parametrize("name", all_connectors())
def test_models_with_every_connector(name):
    model, inputs = small_llava(name, **options_of(name)), prompt(small_processor(name, **options_of(name)))
    assert computed(model, inputs).total == counted(model, inputs)


@pytest.mark.parametrize("name", all_encoders())
def test_models_on_every_encoder(name):
    model, processor = small_encoder_llava.llava(name)
    inputs = prompt(processor)
    assert computed(model, inputs).total == counted(model, inputs)


def test_prefusion_and_the_pass_of_the_text_alone_are_parts_of_their_own():
    options = {"size": 2, "prefusion_layers": 2}
    model, inputs = small_llava("llava_mini", **options), prompt(small_processor("llava_mini", **options))
    parts, text = computed(model, inputs).parts, int((inputs["input_ids"] != 259).sum())
    assert computed(model, inputs).total == counted(model, inputs)

    def layer(tokens: int) -> int:
        width, hidden, keys = 32, 48, 16
        return 2 * tokens * (2 * width * (width + keys) + 3 * width * hidden) + 4 * tokens**2 * width

    assert parts["pre-fusion"] == 2 * layer(36 + 4 + text)  # patches, tokens and text
    assert "text-only pass" not in parts
    model, inputs = small_llava("quecc", scale=3), prompt(small_processor("quecc", scale=3))
    parts = computed(model, inputs).parts
    assert parts["text-only pass"] == TEXT["num_hidden_layers"] * layer(text)
    assert "pre-fusion" not in parts


@pytest.mark.parametrize("name", NESTED)
def test_plans_of_nested_connectors(name):
    plan, tokens = NESTED[name]
    model, inputs = small_llava(name, **options_of(name)), prompt(small_processor(name, **options_of(name)))
    cost = computed(model, inputs, plan)
    assert cost.total == counted(model, inputs, plan)
    assert cost.cached_image == tokens * 2 * 2 * 2 * 8  # layers, keys and values, heads, width of a head


@pytest.mark.parametrize(("plan", "kept"), [(None, 36), ("mqt:7", 7), ("random:25%", 9), ("random:5", 5)])
def test_views_of_an_image(plan, kept):
    """Slices and an overview of several sizes, each with a budget of its own."""
    options = options_of("mqt")
    model, processor = small_llava("mqt", **options), views_processor(LlavaUHDLayout(48, 8), "mqt", **options)
    image = pictures(1)[0].resize((130, 90))
    inputs = processor(images=image, text="what is <image>?", return_tensors="pt")
    shape = cost_of.shape_of(model.config)
    processed = cost_of.processed_image(model.config, 130, 90, processor.image_processor)
    tokens = int((inputs["input_ids"] == 259).sum())
    assert processed.tokens == tokens and len(processed.grids) == len(inputs["pixel_values"]) > 2
    run = cost_of.follow(None if plan is None else Plan.of(plan), shape, processed)
    assert set(run.kept) == {kept * len(processed.grids)} and len(set(processed.grids)) > 1
    cost = cost_of.cost(shape, run, inputs["input_ids"].shape[1] - tokens)
    assert cost.total == counted(model, inputs, plan)


def test_sub_images_that_are_one_image_of_the_connector():
    options = {"size": 2, "prefusion_layers": 2}
    model, processor = (
        small_llava("llava_mini", **options),
        views_processor(LlavaMiniLayout(48, 8), "llava_mini", **options),
    )
    inputs = processor(images=pictures(1)[0].resize((130, 90)), text="what is <image>?", return_tensors="pt")
    shape = cost_of.shape_of(model.config)
    processed = cost_of.processed_image(model.config, 130, 90, processor.image_processor)
    assert (processed.tokens, len(processed.grids), processed.parts) == (4, 5, 5)
    text = int((inputs["input_ids"] != 259).sum())
    cost = cost_of.cost(shape, cost_of.follow(None, shape, processed), text)
    assert cost.total == counted(model, inputs)


def test_crops_that_read_each_other():
    vision = small_encoder_llava.small_config("falcon_vision")
    layout = FalconLayout(side=vision.image_size, patch_size=vision.patch_size, max_crops=4, indicators=False)
    model, processor = small_encoder_llava.llava("falcon_vision")
    processor.image_processor = ViewImageProcessor(layout)
    inputs = processor(images=pictures(1)[0].resize((190, 90)), text="what is <image>?", return_tensors="pt")
    shape = cost_of.shape_of(model.config)
    processed = cost_of.processed_image(model.config, 190, 90, processor.image_processor)
    assert processed.crops is not None and processed.crops.size > 1
    text = int((inputs["input_ids"] != 259).sum())
    assert processed.tokens == inputs["input_ids"].shape[1] - text
    for plan in (None, "random:2"):
        run = cost_of.follow(None if plan is None else Plan.of(plan), shape, processed)
        assert cost_of.cost(shape, run, text).total == counted(model, inputs, plan)


def test_a_smaller_image_for_a_connector_that_merges():
    model, inputs = small_llava("pixel_unshuffle"), prompt(small_processor("pixel_unshuffle"))
    whole, small = (computed(model, inputs, plan).parts for plan in (None, "downsample:4"))
    assert whole["connector"] == 9 / 4 * small["connector"]  # 6 x 6 patches, and 4 x 4
    assert small["encoder"] < whole["encoder"]


def test_connectors_by_hand():
    """Width 48 and text of 32; 6 x 6 patches."""

    def parts(name: str, attention: bool = True, **options: Any) -> int:
        return CountedConnector(small_config(name, **options), 48).flops(Grid(6, 6), attention=attention)

    def mlp(tokens: int) -> int:
        return 2 * tokens * (48 * 32 + 32 * 32)

    assert parts("mlp") == mlp(36) and parts("average", scale=2) == mlp(9)
    # Queries of 9 squares, keys and values of all patches from four layers; each query attends to 4 features.
    keys = 2 * 36 * (4 * 48 * 48 + 48 * 48)
    products = 2 * 48 * 48 * (9 + 36 + 36 + 9)  # projections of queries, keys and values, and the output
    packer = 2 * 9 * 48 * 48 + 2 * keys + products + mlp(9)
    assert parts("tokenpacker", scale=2) == packer + 4 * 9 * 4 * 48
    assert parts("tokenpacker", scale=2, attention=False) == packer
    mini = 2 * 48 * 48 * (4 + 36 + 36 + 4) + mlp(4)
    assert parts("llava_mini", size=2, prefusion_layers=0, num_heads=3) == mini + 4 * 4 * 36 * 48
    # With pre-fusion the two layers map all patches as well.
    assert parts("llava_mini", size=2, prefusion_layers=1, num_heads=3) == mini + 4 * 4 * 36 * 48 + mlp(36)


def test_fused_attention_can_be_left_out_of_encoders():
    """SiT without slimming is a plain transformer, whose attention is four operations a pair and channel."""
    config = small_encoder_llava.small_config("sit", slimming=False)
    encoder = CountedEncoder(config)
    grid = Grid(48 // config.patch_size, 48 // config.patch_size)
    with_attention, without = (encoder.flops(grid, attention=attention) for attention in (True, False))
    tokens = grid.size + 1
    assert with_attention - without == config.num_hidden_layers * 4 * tokens**2 * config.hidden_size


@pytest.mark.parametrize(
    ("connector", "options", "plan", "code"),
    [
        ("tokenpacker", {"scale": 2}, "mqt:16", "needs-nested-connector"),
        ("average", {}, "m3:4 + tome:2", "wrong-order"),
        ("mlp", {}, "tome:16", "needs-one-token-per-patch"),
        ("mqt", {"num_queries": 36, "num_heads": 2}, "downsample:9", "needs-one-raster"),
        ("llava_mini", {"size": 2}, "random:1", "needs-uncompressed-encoder"),
    ],
)
def test_plans_that_cannot_be_attached(connector, options, plan, code):
    config = small_config(connector, **options)
    with refused(code):
        cost_of.follow(Plan.of(plan), cost_of.shape_of(config), cost_of.processed_image(config, 640, 480))


def test_other_plans_that_cannot_be_attached():
    model, _ = small_encoder_llava.llava("lookupvit")
    shape, processed = cost_of.shape_of(model.config), cost_of.processed_image(model.config, 640, 480)
    with refused("needs-plain-encoder"):
        cost_of.follow(Plan.of("downsample:4"), shape, processed)
    config = small_config("oryx")
    with pytest.raises(FoveateError, match="cannot make 7 tokens of 6 x 6 patches; possible are 9, 36"):
        cost_of.follow(Plan.of("oryx:7"), cost_of.shape_of(config), cost_of.processed_image(config, 640, 480))


def test_on_the_command_line(tmp_path, capsys):
    small_llava("llava_mini", size=2).save_pretrained(tmp_path)
    small_processor("llava_mini", size=2).save_pretrained(tmp_path)
    assert main(["flops", "--model", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["type"], document["patches"], document["tokens"]) == ("foveate_llava", 36, 4)
    parts = [row["part"] for row in document["parts"]]
    assert parts[:3] == ["encoder", "connector", "pre-fusion"]
