"""`LlavaUHDImageProcessor`: what is packed, in which order, from what, and how it is saved and found again."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import FoveateError
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from foveate.models.llava_uhd.native_size import native_size


@pytest.fixture
def processor():
    return LlavaUHDImageProcessor(patch_size=4, num_stages=2, scale_resolution=256, min_resolution=None)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_patches_are_row_major_and_normalised(processor):
    image = noise(64, 32)
    out = processor(image, return_tensors="pt")
    assert out["pixel_values"].shape == (8 * 16, 3, 4, 4) and out["pixel_values"].dtype == torch.float32
    assert out["grid_hws"].tolist() == [[8, 16]] and out["grid_hws"].dtype == torch.int64
    pixels = (np.asarray(image, np.float64) / 255 - 0.5) / 0.5
    for row, column in ((0, 0), (3, 5), (7, 15)):
        patch = pixels[row * 4 : row * 4 + 4, column * 4 : column * 4 + 4].transpose(2, 0, 1)
        np.testing.assert_allclose(out["pixel_values"][row * 16 + column], patch, atol=5e-7)


def test_resizing_is_pillows_bicubic(processor):
    image = noise(90, 50)
    resized = image.resize((80, 48), Image.Resampling.BICUBIC)
    assert torch.equal(processor(image)["pixel_values"], processor(resized, do_resize=False)["pixel_values"])


def test_a_batch_is_its_images_one_after_the_other(processor):
    images = [noise(64, 32, 1), noise(16, 80, 2), noise(40, 40, 3)]
    batch = processor(images, return_tensors="pt")
    alone = [processor(image, return_tensors="pt") for image in images]
    assert torch.equal(batch["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))
    assert torch.equal(batch["grid_hws"], torch.cat([one["grid_hws"] for one in alone]))
    nested = processor([[images[0]], [], images[1:]], return_tensors="pt")
    assert torch.equal(nested["pixel_values"], batch["pixel_values"])
    arrays = np.stack([np.asarray(noise(32, 32, seed)) for seed in range(3)])
    assert torch.equal(processor(arrays)["pixel_values"], processor(list(arrays))["pixel_values"])


def test_kinds_of_tensors(processor):
    image = noise(32, 32)
    assert isinstance(processor(image, return_tensors="np")["pixel_values"], np.ndarray)
    first = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert torch.equal(processor(first)["pixel_values"], processor(image)["pixel_values"])
    ambiguous = np.random.default_rng(0).integers(0, 256, (3, 16, 4), dtype=np.uint8)
    out = processor(ambiguous, input_data_format="channels_first", do_resize=True)
    assert out["grid_hws"].tolist() == [[4, 4]]


def test_rescaling_and_normalising_can_be_left_out(processor):
    image = noise(16, 16)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
    raw = processor(image, do_rescale=False, do_normalize=False)["pixel_values"]
    assert torch.equal(raw[0], pixels[:, :4, :4])
    scaled = processor(image, do_normalize=False)["pixel_values"]
    torch.testing.assert_close(scaled[0], pixels[:, :4, :4] / 255)
    other = processor(image, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])["pixel_values"]
    expected = (pixels[1, :4, :4] / 255 - 0.2) / 0.6
    torch.testing.assert_close(other[0, 1], expected)


@pytest.mark.parametrize("size", [(1, 1), (5, 3000), (3000, 5), (300, 200), (256, 256), (255, 17), (4000, 3000)])
def test_counts_from_sizes_alone(processor, size):
    grid = processor(Image.new("L", size))["grid_hws"][0]
    width, height = size
    assert processor.get_number_of_image_patches(height, width) == int(grid.prod())
    assert processor.num_tokens(width, height) == int(grid.prod()) // 16
    assert processor.target_size(width, height) == (4 * int(grid[1]), 4 * int(grid[0]))


def test_settings_per_call(processor):
    image = noise(512, 512)
    assert processor(image)["grid_hws"].tolist() == [[64, 64]]
    assert processor(image, scale_resolution=128)["grid_hws"].tolist() == [[32, 32]]
    assert processor(image, num_stages=3, patch_size=8, scale_resolution=100)["grid_hws"].tolist() == [[8, 8]]
    assert processor(noise(64, 64), min_resolution=128)["grid_hws"].tolist() == [[32, 32]]
    assert processor(noise(64, 64), upscale_factor=2.0)["grid_hws"].tolist() == [[32, 32]]
    assert processor.num_tokens(512, 512, scale_resolution=128) == 64
    assert processor.get_number_of_image_patches(512, 512, {"scale_resolution": 128}) == 32 * 32
    assert processor(image)["grid_hws"].tolist() == [[64, 64]]  # and the call leaves no trace


def test_default_is_the_released_configuration():
    processor = LlavaUHDImageProcessor()
    assert processor.unit == 40
    assert processor.target_size(1000, 700) == native_size(1000, 700)
    released = LlavaUHDImageProcessor(any_res=True, allow_upscale=True, scale_resolution=1560, patch_size=10)
    assert released.upscale_factor == 1.4


@pytest.mark.parametrize("floor", [None, 300])
def test_saved_and_loaded(tmp_path, processor, floor):
    processor.min_resolution = floor
    processor.save_pretrained(tmp_path)
    again = LlavaUHDImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict() and again.min_resolution == floor
    assert LlavaUHDImageProcessor.from_pretrained(tmp_path, scale_resolution=99).scale_resolution == 99


def test_a_grid_that_no_stage_can_divide_is_refused(processor):
    with pytest.raises(FoveateError, match=r"multiples of the unit, 16 pixels \(patch_size=4 and 2 stages\).*40 x 32"):
        processor(noise(40, 32), do_resize=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"images": None}, "no image given"),
        ({"images": []}, "empty list"),
        ({"images": [[[[Image.new("L", (9, 9))]]]]}, "nested too deeply"),
        ({"images": np.zeros((1, 2, 8, 8, 3), np.uint8)}, "looks like a video"),
        ({"images": Image.new("L", (9, 9)), "videos": ["a.mp4"]}, "images only"),
        ({"images": Image.new("L", (9, 9)), "size": {"height": 2, "width": 2}}, "size=.* has no meaning"),
        ({"images": Image.new("L", (9, 9)), "do_center_crop": True}, "do_center_crop"),
        ({"images": Image.new("L", (9, 9)), "image_std": 0.0}, "image_std"),
        ({"images": Image.new("L", (9, 9)), "patch_size": 0}, "patch_size"),
        ({"images": ["missing.png"]}, "no image file at 'missing.png'"),
    ],
)
def test_bad_calls_are_named(processor, call, message):
    with pytest.raises(FoveateError, match=message):
        processor(**call)


@pytest.mark.parametrize("settings", [{"patch_size": 0}, {"num_stages": -1}, {"max_edge": 8}, {"any_res": False}])
def test_bad_settings_are_named(settings):
    with pytest.raises(FoveateError, match=next(iter(settings))):
        LlavaUHDImageProcessor(**settings)
