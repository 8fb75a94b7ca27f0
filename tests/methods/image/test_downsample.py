"""`downsample`: the raster of a smaller image, and smaller images in the layout of each family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor

import foveate
from foveate.core.image import kept_positions
from foveate.core.tokens import Grid
from foveate.families import families
from foveate.methods.image.downsample import Downsample
from tests.families.zoo import zoo
from tests.refusals import refused

sides = st.integers(1, 40)


@given(sides, sides, st.data())
def test_exactly_as_many_tokens_at_places_of_their_own(rows: int, columns: int, data: st.DataObject) -> None:
    grid = Grid(rows, columns)
    count = data.draw(st.integers(1, grid.size))
    small = Downsample().reduced_grid(grid, count)
    assert small.rows <= rows
    assert small.columns <= columns
    assert small.size >= count
    stay, at = kept_positions(grid, small, count)
    assert len(stay) == len(at) == count
    assert int(stay[0]) >= 0
    assert int(stay[-1]) < small.size
    assert bool((stay.diff() > 0).all())
    assert bool((at.diff() > 0).all())
    assert int(at[-1]) < grid.size


def test_the_raster_keeps_the_proportions() -> None:
    assert Downsample().reduced_grid(Grid(24, 24), 144) == Grid(12, 12)
    assert Downsample().reduced_grid(Grid(10, 40), 100) == Grid(5, 20)
    assert Downsample().reduced_grid(Grid(24, 24), 576) == Grid(24, 24)


def test_patches_of_qwen_are_those_of_a_smaller_image() -> None:
    """What the family makes of patches is what the processor makes of the image at the smaller size."""
    model = zoo()["qwen2.5-vl"].model()
    y, x = np.mgrid[0:96, 0:160] / 30
    image = np.stack([np.sin(x + k) * np.cos(y - k) for k in range(3)], axis=-1) * 100 + 128
    picture = Image.fromarray(image.astype(np.uint8))
    processor = Qwen2VLImageProcessor(
        patch_size=4, merge_size=2, min_pixels=16, max_pixels=10**6, temporal_patch_size=2
    )
    large = processor(picture, return_tensors="pt", do_resize=False)
    grid = Grid(6, 10)
    call = {"pixel_values": large["pixel_values"], "image_grid_thw": large["image_grid_thw"]}
    small = families()["qwen2.5-vl"].shrink(model.model, "image", call, [grid])
    assert small["image_grid_thw"].tolist() == [[1, 12, 20]]
    expected = processor(picture.resize((80, 48), Image.Resampling.BICUBIC), return_tensors="pt", do_resize=False)
    assert small["pixel_values"].shape == expected["pixel_values"].shape
    assert float((small["pixel_values"] - expected["pixel_values"]).abs().mean()) < 0.02
    same = families()["qwen2.5-vl"].shrink(model.model, "image", call, [Grid(12, 20)])
    torch.testing.assert_close(same["pixel_values"], call["pixel_values"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava", "llava-siglip", "qwen2-vl", "qwen2.5-vl"])
def test_a_reduced_image_is_that_image(name: str) -> None:
    """The tokens are those of the encoder on the smaller image, at the positions of what they show."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), [((4, 4),)])
    family = families()[specimen.family]
    call = {key: value for key, value in inputs.items() if key in ("pixel_values", "image_grid_thw")}
    with torch.no_grad():
        shrunk = family.shrink(model.model, "image", call, [Grid(2, 2)])
        expected = model.model.get_image_features(**shrunk, return_dict=True).pooler_output[0]
        hidden = []
        hook = model.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, args: hidden.append(args[0])
        )
        with foveate.compress(model, "downsample:4") as handle:
            model(**inputs)
        hook.remove()
    (image,) = handle.report().images
    assert image.selection.indices.tolist() == [5, 7, 13, 15]
    start = int((inputs["input_ids"][0] == 119).nonzero()[0])
    torch.testing.assert_close(hidden[0][0, start : start + 4], expected)


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_frames_of_a_reduced_clip_are_those_of_that_clip(name: str) -> None:
    """Every frame becomes smaller, and the tokens are spread evenly over the frames, in their places."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), [((3, 4, 4),)])
    family = families()[specimen.family]
    call = {key: value for key, value in inputs.items() if key in ("pixel_values_videos", "video_grid_thw")}
    with torch.no_grad():
        shrunk = family.shrink(model.model, "video", call, [Grid(2, 2)])
        assert shrunk["video_grid_thw"].tolist() == [[3, 4, 4]]
        frame = {**call, "video_grid_thw": torch.tensor([[1, 8, 8]])}
        for number, patches in enumerate(call["pixel_values_videos"].chunk(3)):
            alone = family.shrink(model.model, "video", {**frame, "pixel_values_videos": patches}, [Grid(2, 2)])
            torch.testing.assert_close(shrunk["pixel_values_videos"].chunk(3)[number], alone["pixel_values_videos"])
        expected = model.model.get_video_features(**shrunk, return_dict=True).pooler_output[0]
        hidden = []
        hook = model.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, args: hidden.append(args[0])
        )
        with foveate.compress(model, "downsample:10") as handle:
            model(**inputs)
        hook.remove()
    (clip,) = handle.report().images
    assert [crop.kind for crop in clip.layout.crops] == ["frame"] * 3
    assert clip.kept_by_crop == [3, 3, 4]
    assert clip.selection.indices.tolist() == [5, 13, 15, 21, 29, 31, 37, 39, 45, 47]
    # Where the prompt writes the time of every frame, there is text between the frames.
    places = (inputs["input_ids"][0] == model.config.video_token_id).nonzero()[:, 0]
    stays = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    stays[places] = False
    stays[places[clip.selection.indices]] = True
    kept = (stays.cumsum(0) - 1)[places[clip.selection.indices]]
    torch.testing.assert_close(hidden[0][0, kept], expected[[0, 2, 3, 4, 6, 7, 8, 9, 10, 11]])


def test_what_cannot_be_reduced_is_refused() -> None:
    model = zoo()["llava"].model()
    with refused("wrong-order"):
        foveate.compress(model, "divprune:3 + downsample:2")
    with refused("needs-every-patch"):
        foveate.compress(model, "downsample:8 + fastervlm:2")
