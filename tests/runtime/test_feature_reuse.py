"""Features of static tokens that are reused between frames, inside live encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

import foveate
from foveate import FoveateError
from foveate.families import family_of
from foveate.methods.encoder.stc_cacher import STCCacher
from foveate.runtime.feature_reuse import FrameHistory
from tests.families.zoo import zoo
from tests.streaming.small_streams import clip, inputs, small

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "stc.json").read_text())
NAMES = ("llava-onevision", "qwen2-vl", "qwen3-vl")
EXACT: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


def encoded(name: str, frames: Any) -> tuple[Any, dict[str, Tensor]]:
    model, processor = small(name)
    call = {
        key: value
        for key, value in inputs(model, processor, frames, "?").items()
        if key in ("pixel_values_videos", "video_grid_thw")
    }
    return model, call


@torch.inference_mode()
def features(model: Any, call: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(model.model.get_video_features(**call, return_dict=True).pooler_output))


@pytest.mark.parametrize("name", NAMES)
def test_all_dynamic_and_static_frames_are_the_plain_encoder(name: str) -> None:
    model, call = encoded(name, clip(6))
    plain = features(model, call)
    with foveate.reuse_features(model, STCCacher(dynamic=1.0)):
        torch.testing.assert_close(features(model, call), plain, **EXACT)
    with foveate.reuse_features(model, STCCacher(dynamic=0.3)):
        assert not torch.allclose(features(model, call), plain, atol=1e-2)
    with foveate.reuse_features(model, STCCacher(dynamic=0.3, interval=1)):
        torch.testing.assert_close(features(model, call), plain, **EXACT)
    assert torch.equal(features(model, call), plain)
    model, static = encoded(name, clip(1).repeat(6, axis=0))
    plain = features(model, static)
    with foveate.reuse_features(model, STCCacher(dynamic=0.1, interval=3)):
        torch.testing.assert_close(features(model, static), plain, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_frames_one_by_one_are_the_clip(name: str) -> None:
    size = 1 if name == "llava-onevision" else 2
    frames = clip(5 * size)
    model, call = encoded(name, frames)
    separator = int(name == "llava-onevision")
    with foveate.reuse_features(model, STCCacher(dynamic=0.4, interval=3)) as reuse:
        whole = features(model, call)
        steps, history = [], FrameHistory()
        for start in range(0, len(frames), size):
            with reuse.continuing(history):
                part = features(*encoded(name, frames[start : start + size]))
            steps.append(part[: len(part) - separator] if part.ndim == 2 else part)
        assert history.frames == 5
    torch.testing.assert_close(torch.cat(steps), whole[: len(whole) - separator], **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_reuses_features_and_selects_as_a_clip_does(name: str) -> None:
    model, processor = small(name)
    frames, reuse = clip(6), STCCacher(dynamic=0.3)
    with foveate.stream(model, processor, reuse=reuse, plan="stc:50%") as session:
        for frame in frames[:5]:
            session.feed(frame)
        session.ask("Yet?", max_new_tokens=1)  # the frame that waits for its patch is encoded, and forgotten
        session.feed(frames[5])
        logits = session.logits("What happens?")
    with foveate.reuse_features(model, reuse), foveate.compress(model, "stc:50%"), torch.inference_mode():
        expected = model(**inputs(model, processor, frames, "What happens?")).logits[0, -1]
    torch.testing.assert_close(logits, expected, **EXACT)


class _Core(torch.nn.Module):
    """A SigLIP tower in a model that encodes clips frame by frame, for the frames of the authors' code."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.config = small("llava-onevision")[0].config
        self.vision_tower = tower

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """Run the blocks on embedded frames (1, F, N, d)."""
        hidden = pixel_values_videos[0]
        for layer in (getattr(self.vision_tower, "vision_model", self.vision_tower)).encoder.layers:
            hidden = layer(hidden, None)
        return hidden


@pytest.mark.parametrize("case", GOLDEN["reuse"], ids=lambda case: str(case["dynamic"]))
def test_authors_code(case: dict) -> None:
    shape: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = SiglipVisionConfig(**shape, image_size=4 * case["side"], patch_size=4, vision_use_head=False)
    tower = SiglipVisionModel(config).eval()
    layers = getattr(tower, "vision_model", tower).encoder.layers
    with torch.no_grad():
        for name, weight in layers.named_parameters():
            weight.copy_(torch.tensor(case["weights"][name]).view_as(weight))
    frames = torch.tensor(case["frames"]).view(1, -1, case["side"] ** 2, 8)
    model = _Core(tower)
    with foveate.reuse_features(model, STCCacher(case["dynamic"], case["interval"])), torch.no_grad():
        output = model.get_video_features(frames)
    expected = torch.tensor(case["output"]).view_as(output)
    torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)


def test_images_are_encoded_in_full() -> None:
    model = zoo()["qwen2-vl"].model()
    prompts = zoo()["qwen2-vl"].prompts(model, (((2, 3), (2, 3)),))
    call = {"pixel_values": prompts["pixel_values"], "image_grid_thw": prompts["image_grid_thw"]}
    with torch.inference_mode():
        plain = torch.cat(model.model.get_image_features(**call).pooler_output)
        with foveate.reuse_features(model, STCCacher(dynamic=0.1)):
            assert torch.equal(torch.cat(model.model.get_image_features(**call).pooler_output), plain)


def test_refusals() -> None:
    for name in ("qwen2.5-vl", "qwen3.5", "glm-4v"):
        with pytest.raises(FoveateError, match="features are reused in encoders with the blocks of") as refused:
            foveate.reuse_features(zoo()[name].model())
        assert refused.value.code == "needs-frames-apart"
    with pytest.raises(FoveateError, match="takes none"):
        foveate.reuse_features(zoo()["llava-clip"].model() if "llava-clip" in zoo() else zoo()["paligemma"].model())
    model, _ = small("llava-onevision")
    with (
        foveate.reuse_features(model),
        pytest.raises(FoveateError, match="replaced already"),
    ):
        foveate.reuse_features(model)
    with pytest.raises(FoveateError, match="with reuse= only some are computed"):
        foveate.stream(*small("llava-onevision"), reuse=STCCacher(), plan="fastervlm:50%")
    with pytest.raises(FoveateError, match="evs compares all frames of a clip"):
        foveate.stream(*small("llava-onevision"), plan="evs:50%")
    wrong: list[dict[str, Any]] = [{"dynamic": 0}, {"dynamic": 1.5}, {"interval": 0}]
    for arguments in wrong:
        with pytest.raises(FoveateError, match=f"STCCacher: {next(iter(arguments))} is"):
            STCCacher(**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_frames_that_failed_are_encoded_again(name: str) -> None:
    model, call = encoded(name, clip(4))
    block: Any = family_of(model).blocks(model.model)[-1]

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    with foveate.reuse_features(model, STCCacher(dynamic=0.3)) as reuse:
        expected, history = features(model, call), FrameHistory()
        hook = next(block.children()).register_forward_pre_hook(fail)
        with reuse.continuing(history), pytest.raises(KeyboardInterrupt):
            features(model, call)
        hook.remove()
        with reuse.continuing(history):
            assert torch.equal(features(model, call), expected)
