"""Costs of models with video connectors: against the counter on whole models."""

from __future__ import annotations

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.cost import Convention, clip_cost, flops
from foveate.models.video_connectors import (
    all_video_connectors,
    register_video_connector,
    unregister_video_connector,
    video_connector_of_sizes,
)
from foveate.models.video_connectors.average import Average
from tests.models.encoders.small_encoders import small_config as small_encoder_config
from tests.models.llava.small_llava import SIDE
from tests.models.llava_video.small_llava_video import VIDEO_ID, clips, small_llava_video, small_processor
from tests.models.video_connectors.small_options import options_of

FRAMES = 4
COUNTED = [name for name in all_video_connectors() if video_connector_of_sizes(name, options_of(name)).static_cost]


@pytest.mark.parametrize("encoder", [None, "temporal_pvc"])
@pytest.mark.parametrize("name", COUNTED)
def test_models_with_every_connector(name, encoder):
    if encoder is not None and name not in ("average", "temporal_pvc"):
        pytest.skip("one encoder of clips is enough for the others")
    vision = None if encoder is None else small_encoder_config(encoder)
    model = small_llava_video(name, vision, **options_of(name)).requires_grad_(False)
    batch = small_processor(name, **options_of(name))(
        videos=clips(FRAMES), text="what is <video>?", return_tensors="pt"
    )
    inputs = dict(batch)
    if encoder is not None:
        most = model.model.multi_modal_projector.output_shape(FRAMES, vision.output_grid(SIDE, SIDE)).size
        inputs["input_ids"] = torch.tensor([[1, 2, *[VIDEO_ID] * most, 3]])
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    text = int((inputs["input_ids"] != VIDEO_ID).sum())
    with torch.inference_mode():
        counted = flops.count(lambda: model(**inputs, logits_to_keep=1))
    words = inputs["video_instruction_ids"].shape[1] if "video_instruction_ids" in inputs else 0
    assert clip_cost(model.config, FRAMES, SIDE, SIDE, text, words=words).total == counted


def test_operations_that_depend_on_the_clip_are_left_out():
    config = small_llava_video("vqtoken", clusters=5).config
    with pytest.raises(FoveateError, match="what the connector vqtoken computes depends on the clip"):
        clip_cost(config, FRAMES, SIDE, SIDE, 3)
    average = small_llava_video("average", scale=2, frames=1).config
    without = Convention(connector=False)
    ours, theirs = (clip_cost(one, FRAMES, SIDE, SIDE, text, without) for one, text in ((config, 7), (average, 3)))
    assert ours.total == theirs.total


def test_a_number_of_tokens_that_depends_on_the_clip_is_refused():
    class Own(Average):
        name = "own"

        @property
        def static_count(self) -> bool:
            return False

    register_video_connector(Own)
    try:
        with pytest.raises(FoveateError, match="connector own depends on the clip"):
            clip_cost(small_llava_video("own").config, FRAMES, SIDE, SIDE, 3)
    finally:
        unregister_video_connector("own")
