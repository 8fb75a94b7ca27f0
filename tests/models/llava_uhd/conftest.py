"""Small random models of each family, a processor and pictures, made once and never trained in place."""

import copy
import functools

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.models.llava_uhd import (
    LlavaUHDConfig,
    LlavaUHDForConditionalGeneration,
    LlavaUHDProcessor,
    byte_tokenizer,
    register,
)
from foveate.models.llava_uhd.image_processing import LlavaUHDImageProcessor
from tests.models.llava_uhd.small_llava_uhd import FAMILIES, small_text_config, small_vision_config

register()


@functools.cache
def _model(family: str, tied: bool) -> LlavaUHDForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaUHDConfig(
        vision_config=small_vision_config(),
        text_config=small_text_config(family, tie_word_embeddings=tied),
        image_token_id=259,
    )
    return LlavaUHDForConditionalGeneration(config).eval()


@pytest.fixture(params=list(FAMILIES))
def model(request) -> LlavaUHDForConditionalGeneration:
    """A model of each family; read it, do not change it."""
    return _model(request.param, tied=False)


@pytest.fixture
def qwen2() -> LlavaUHDForConditionalGeneration:
    """One model, where the family does not matter; read it, do not change it."""
    return _model("qwen2", tied=False)


@pytest.fixture
def fresh() -> LlavaUHDForConditionalGeneration:
    """A model that a test may change, with tied embeddings like the embedded model."""
    return copy.deepcopy(_model("qwen3", tied=True))


@pytest.fixture(scope="session")
def processor() -> LlavaUHDProcessor:
    """The processor of all these models: one token for 16 x 16 px, at most 64 x 64 px."""
    image_processor = LlavaUHDImageProcessor(
        patch_size=4, num_stages=2, scale_resolution=64, min_resolution=16, max_edge=128
    )
    return LlavaUHDProcessor(image_processor, byte_tokenizer())


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Noise of several sizes: 6, 4, 3 and 12 tokens."""
    random = np.random.default_rng(0)
    sizes = [(48, 32), (32, 32), (16, 48), (64, 48)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture
def batch(processor, pictures):
    """Three prompts of different length: two images, one image, none; padded on the left."""
    return processor(
        images=[[pictures[0], pictures[1]], [pictures[2]], []],
        text=["<image> and <image>: compare", "<image>?", "no image at all"],
        return_tensors="pt",
        padding=True,
    )


@pytest.fixture
def singles(processor, pictures):
    """The prompts of `batch`, one by one."""
    prompts = [
        ([pictures[0], pictures[1]], "<image> and <image>: compare"),
        ([pictures[2]], "<image>?"),
        (None, "no image at all"),
    ]
    return [processor(images=images, text=text, return_tensors="pt") for images, text in prompts]
