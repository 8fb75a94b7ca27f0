"""Fourier-VLM without training on live models."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

import foveate
from foveate import FoveateError, compat
from foveate.core.plan import Budget
from foveate.core.tokens import Grid
from foveate.families import ImageLayout, family_of
from foveate.families.family import grid_crop
from foveate.methods.connector.fourier import Fourier
from foveate.methods.shared.low_pass import low_pass
from foveate.runtime.raster_features import RasterReduction
from foveate.testing.live import LivePromises, answers, logits
from foveate.testing.small_model import small_model
from tests.families.zoo import IMAGE, llama, zoo
from tests.models.llava.small_llava import small_batch, small_llava, small_processor
from tests.refusals import refused

QWEN = ("qwen2-vl", "qwen2.5-vl")


class TestFourier(LivePromises):
    methods = (Fourier(),)


def grids_of(sizes: tuple[tuple[int, ...], ...], ratio: float) -> tuple[tuple[int, ...], ...]:
    """Sizes (rows, columns) or (frames, rows, columns) after the filter."""
    return tuple((*size[:-2], *(max(int(side * ratio), 1) for side in size[-2:])) for size in sizes)


def always(output: Any, original: Any) -> Any:
    """A function with the signature of `original`, which `generate` reads, that gives one output."""

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return output

    return function


def as_the_authors_do(core: Any, inputs: dict[str, Any], ratio: float, patch: pytest.MonkeyPatch) -> None:
    """Let the model's functions give the filtered features of these images, whatever they are called with."""
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if name not in inputs:
            continue
        original = getattr(core, f"get_{modality}_features")
        call = {name: inputs[name], f"{modality}_grid_thw": inputs[f"{modality}_grid_thw"]}
        output = original(**call)
        filtered = []
        for features, (frames, rows, columns) in zip(
            output.pooler_output, inputs[f"{modality}_grid_thw"].tolist(), strict=True
        ):
            grid = Grid(rows // 2, columns // 2)
            kept = Grid(*(max(int(side * ratio), 1) for side in grid))
            filtered += [low_pass(features.view(frames, grid.size, -1), grid, kept, rescale=True).flatten(0, 1)]
        output.pooler_output = filtered
        patch.setattr(core, f"get_{modality}_features", always(output, original))


@pytest.mark.parametrize("ratio", [2 / 3, 0.5])
@pytest.mark.parametrize(
    "rows", [(((4, 6),),), (((4, 6), (3, 5)), ((6, 4),)), (((2, 4, 6),),), (((5, 4), (2, 3, 4)), ((4, 4),))]
)
@pytest.mark.parametrize("name", QWEN)
def test_a_run_is_the_model_with_fewer_placeholders_and_a_smaller_grid_thw(name, rows, ratio, monkeypatch):
    """As the authors do it: features are filtered, and the prompt is that of images of the smaller raster."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, rows, seed=3)
    plan = f"fourier(ratio={ratio!r})"
    with foveate.compress(model, plan) as handle:
        found, written = logits(model, inputs), answers(model, inputs)
        assert written == answers(model, inputs, use_cache=False)
        report = handle.report()
    smaller = specimen.prompts(model, [grids_of(row, ratio) for row in rows], seed=3)
    placeholders = int((smaller["mm_token_type_ids"] > 0).sum())
    assert report.tokens_kept == placeholders < report.tokens_in
    with torch.no_grad():
        as_the_authors_do(family_of(model).core(model), inputs, ratio, monkeypatch)
    expected = logits(model, smaller)
    for row in range(len(rows)):
        count = int(smaller["attention_mask"][row].sum())
        torch.testing.assert_close(found[row, -count:], expected[row, -count:], atol=1e-4, rtol=1e-3)
    assert written == answers(model, smaller)


@pytest.mark.parametrize("name", ["llava", "llava-siglip"])
def test_the_projector_of_llava_reads_the_filtered_features(name, monkeypatch):
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, (((4, 4), (4, 4)),))
    with foveate.compress(model, "fourier:4") as handle:
        found, written = logits(model, inputs), answers(model, inputs)
        assert [image.tokens_kept for image in handle.report().images] == [4, 4]
    core = model.model
    features = projector_input(model, inputs)
    output = core.get_image_features(
        inputs["pixel_values"],
        vision_feature_layer=core.config.vision_feature_layer,
        vision_feature_select_strategy=core.config.vision_feature_select_strategy,
    )
    filtered = low_pass(features, Grid(4, 4), Grid(2, 2), rescale=True)
    output.pooler_output = list(core.multi_modal_projector(filtered))
    image = inputs["input_ids"][0] == IMAGE
    keep = ~image | (image & (image.cumsum(0) - 1).remainder(16).lt(4))
    smaller = inputs | {key: inputs[key][:, keep] for key in ("input_ids", "attention_mask")}
    monkeypatch.setattr(core, "get_image_features", always(output, core.get_image_features))
    torch.testing.assert_close(found, logits(model, smaller), atol=1e-5, rtol=1e-4)
    assert written == answers(model, smaller)


def projector_input(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """What the projector of LLaVA reads in a pass."""
    read = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    logits(model, inputs)
    hook.remove()
    return read[0]


def test_a_constant_map_stays_as_it_is():
    """Otherwise a language model that was not trained so would read features of another size."""
    model = copy.deepcopy(small_model())
    inputs = zoo()["llava"].prompts(model, (((4, 4),),))
    for parameter in model.model.vision_tower.parameters():
        parameter.data.zero_()  # every patch has the same features
    bias = next(p for n, p in model.model.vision_tower.named_parameters() if n.endswith("layers.0.mlp.fc2.bias"))
    bias.data.uniform_(1, 2)
    before = projector_input(model, inputs)
    with foveate.compress(model, "fourier:4"):
        after = projector_input(model, inputs)
    assert (before.shape[1], after.shape[1]) == (16, 4)
    torch.testing.assert_close(after, before[:, :4])
    assert float(before.abs().min()) > 0.5


def test_a_budget_of_a_clip_is_divided_over_its_frames():
    specimen = zoo()["qwen2.5-vl"]
    model = specimen.model()
    inputs = specimen.prompts(model, (((3, 3, 4),),))
    for plan, kept in (("fourier:12", 12), ("fourier:13", 13), ("fourier:2", 2), ("fourier:50%", 18)):
        with foveate.compress(model, plan) as handle:
            logits(model, inputs)
            assert [image.tokens_kept for image in handle.report().images] == [kept]


def test_excess_tokens_are_left_out_evenly():
    reduction = RasterReduction.of(Fourier(), ImageLayout(391, grid_crop(17, 23)), Budget(tokens=98))
    assert (reduction.reduced, len(reduction.rows)) == (Grid(9, 11), 98)
    for count, side in ((256, 16), (144, 12), (64, 8), (36, 6)):
        reduction = RasterReduction.of(Fourier(), ImageLayout(576, grid_crop(24, 24)), Budget(tokens=count))
        assert reduction.reduced == Grid(side, side)
        assert reduction.rows.tolist() == list(range(count))


def test_original_positions_are_those_of_the_middles_of_regions():
    specimen = zoo()["qwen2-vl"]
    model = specimen.model()
    inputs = specimen.prompts(model, (((4, 6),),))
    read = []
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(lambda module, args: read.append(args[1]))
    for positions in ("original", "contiguous"):
        with foveate.compress(model, "fourier:6", positions=positions):
            logits(model, inputs)
    hook.remove()
    image = (inputs["input_ids"][0] == IMAGE).nonzero()[0, 0]
    start = int(image)
    places = [[tuple((p[-2:, 0, image + i] - start).tolist()) for i in range(6)] for p in read]
    assert places[0] == [(1, 1), (1, 3), (1, 5), (3, 1), (3, 3), (3, 5)]
    assert places[1] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_later_steps_act_on_its_tokens():
    for name in ("llava", "qwen2-vl"):
        specimen = zoo()[name]
        model = specimen.model()
        inputs = specimen.prompts(model, (((4, 4), (4, 4)), ((4, 4),)))
        for plan, expected in (("fourier:9 + divprune:4", 4), ("fourier:4 + fastv:2@1", 2)):
            with foveate.compress(model, plan) as handle:
                assert answers(model, inputs) == answers(model, inputs, use_cache=False)
                assert [image.tokens_left for image in handle.report().images] == [expected] * 3


def test_a_model_with_the_connector_runs_it_at_the_length():
    model = small_llava("fourier", ratio=1.0)
    inputs = small_batch(small_processor("fourier", ratio=1.0))
    with foveate.compress(model, "nested:9"):
        expected = logits(model, inputs)
    with foveate.compress(model, "fourier:9"):
        assert torch.equal(logits(model, inputs), expected)
    with refused("needs-budget"):
        foveate.compress(model, "fourier")


def test_gradients_pass_through():
    model = small_model()
    inputs = zoo()["llava"].prompts(model, (((4, 4),),))
    inputs["pixel_values"].requires_grad_()
    with foveate.compress(model, "fourier:4"):
        model(**inputs).logits[:, -1].square().sum().backward()
    assert float(inputs["pixel_values"].grad.abs().sum()) > 0
    model.zero_grad()


def test_what_is_refused():
    for name, plan, code in (
        ("gemma3", "fourier:3", "needs-raster-features"),
        ("qwen3-vl", "fourier:3", "needs-raster-features"),
        ("llava-next", "fourier:3", "needs-raster-features"),
        ("foveate-llava-nested", "fourier:3", "needs-nested-connector"),
        ("llava", "divprune:9 + fourier:3", "wrong-order"),
        ("llava", "fourier(ratio=0.5):3", "argument-excludes-budget"),
        ("llava", "fourier:9 + fastervlm:4", "needs-every-patch"),
    ):
        with refused(code):
            foveate.compress(zoo()[name].model(), plan)
    with pytest.raises(FoveateError, match="ratio must be a number above 0, up to 1, not 2"):
        Fourier(ratio=2)


def test_images_of_a_pixtral_encoder_are_refused():
    """Their features are one sequence before the projector, of which it does not say where an image ends."""
    vision = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision, text_config=llama(), vision_feature_select_strategy="full", image_token_index=IMAGE
    )
    with refused("needs-one-raster", "Pixtral"):
        foveate.compress(LlavaForConditionalGeneration(config), "fourier:4")


@pytest.mark.parametrize("name", QWEN)
def test_a_second_turn_with_an_image_goes_on_after_the_smaller_positions(name):
    """Positions of the second turn come earlier for the images of both."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, (((4, 6), (6, 4)),), seed=4)
    first = int((inputs["input_ids"][0] == IMAGE).nonzero()[24]) - 2  # before the second image
    core = family_of(model).core(model)
    positions, _ = core.get_rope_index(**{
        key: inputs[key] for key in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    })  # fmt: skip
    sizes = inputs["image_grid_thw"].prod(dim=-1).tolist()
    with foveate.compress(model, "fourier(ratio=0.5)"), torch.no_grad():
        expected = model(**inputs, position_ids=positions).logits
        cache = DynamicCache(config=model.config.get_text_config())
        for turn, columns in enumerate((slice(0, first), slice(first, None))):
            part = {key: inputs[key][:, columns] for key in ("input_ids", "mm_token_type_ids")}
            out = model(
                **part,
                **compat.cache_argument(cache),
                attention_mask=inputs["attention_mask"][:, : columns.stop],
                position_ids=positions[..., columns],
                pixel_values=inputs["pixel_values"].split(sizes)[turn],
                image_grid_thw=inputs["image_grid_thw"][turn : turn + 1],
                use_cache=True,
            )
    torch.testing.assert_close(out.logits, expected[:, -out.logits.shape[1] :], atol=1e-5, rtol=1e-4)
