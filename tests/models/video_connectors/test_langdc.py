"""LangDC: the authors' numbers, captions without a cache, and soft tokens by clip and layer."""

import json
import re
from pathlib import Path

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import build_video_connector
from foveate.models.video_connectors.langdc import LangDC
from tests.models.video_connectors.released_langdc import (
    IMAGE_WIDTH,
    OPTIONS,
    TEXT_WIDTH,
    features,
    weights,
)
from tests.models.video_connectors.small_options import options_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "langdc.json").read_text(encoding="utf-8"))
GRID = Grid(6, 6)


def from_released(released: dict) -> dict:
    """Weights under our names, by the patterns of full names that the class states."""
    return {
        next(name for pattern, ours in LangDC.released_keys.items() if (name := re.sub(pattern, ours, key)) != key): row
        for key, row in released.items()
    }


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"stop {case['stop'][0]}")
def test_equals_the_authors_code(case):
    """Embeddings of the captions' tokens, in the code's counting, after pooled tokens of both encoders."""
    options = OPTIONS | {"stop": case["stop"], "form": "released", "layer": 0}
    connector = build_video_connector("langdc", IMAGE_WIDTH, TEXT_WIDTH, **options).eval()
    connector.load_state_dict(from_released(weights()))
    image, video = features()
    with torch.no_grad():
        tokens = connector.read(image, video, Grid(12, 12), Grid(8, 8))
        assert connector.lengths(connector.captions(image, video, Grid(12, 12), Grid(8, 8))) == case["lengths"]
    pooled, soft = tokens[: 16 * (36 + 16)], tokens[16 * (36 + 16) :]
    torch.testing.assert_close(soft, torch.tensor(case["soft"]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pooled.sum(dim=1), torch.tensor(case["sums"]), atol=1e-4, rtol=1e-4)


def small(**options) -> LangDC:
    """Weights that write captions of other lengths."""
    torch.manual_seed(5)
    connector = build_video_connector("langdc", 12, 10, **options_of("langdc") | {"stop": [18, 20]} | options).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return connector


@torch.no_grad()
def written(connector: LangDC, clip: torch.Tensor, layer: int) -> tuple[list[int], list[torch.Tensor]]:
    """A caption of one clip, token by token without a cache, up to the token that ends it, and the states before."""
    embed = connector.captioner.get_input_embeddings()

    def words(ids):
        return embed(torch.tensor(ids))

    def pool(x, side):
        return torch.nn.functional.adaptive_avg_pool2d(x.T.view(-1, 6, 6), side).flatten(1).T

    image = [pool(connector.caption_image(frame), 3) for frame in clip]
    video = [pool(connector.caption_video(frame), 2) for frame in clip]
    sequence = torch.cat([words([7]), *image, *video, words([8, 9])])
    ids, states = [], []
    while len(ids) < 5:
        output = connector.captioner(inputs_embeds=sequence[None], output_hidden_states=True, use_cache=False)
        token = int((output.last_hidden_state[0, -1] @ embed.weight.T).argmax())
        if token in connector.options.stop:
            break
        ids.append(token)
        states.append(output.hidden_states[layer][0, -1])
        sequence = torch.cat([sequence, words([token])])
    return ids, states


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_soft_tokens_are_those_before_the_end_of_every_caption(layer):
    """Three clips, the last of one frame; another layer changes values, not numbers."""
    connector = small(layer=layer)
    features = 3 * torch.randn(5, 36, 12)
    with torch.no_grad():
        tokens = connector(features, GRID)
        found = connector.captions(features, features, GRID, GRID)
    expected = [written(connector, clip, layer) for clip in features.split(2)]
    counts = [len(ids) for ids, _ in expected]
    assert connector.lengths(found) == counts == [5, 4, 2]
    for caption, (ids, _) in zip(found, expected, strict=True):
        assert caption.ids[: len(ids)].tolist() == ids
    states = torch.stack([state for _, states in expected for state in states])
    with torch.no_grad():
        torch.testing.assert_close(tokens[5 * 5 :], connector.soft_projector(states), atol=1e-5, rtol=1e-4)


def test_two_copies_of_a_clip_have_equal_blocks():
    connector, clip = small(), 3 * torch.randn(2, 36, 12)
    with torch.no_grad():
        tokens = connector(clip.repeat(2, 1, 1), GRID)
    image, video, soft = tokens[:16], tokens[16:20], tokens[20:]
    for block in (image, video, soft):
        assert len(block)
        torch.testing.assert_close(*block.chunk(2), atol=1e-4, rtol=1e-4)


def test_the_loss_of_captions_is_that_of_their_tokens_and_trains_the_captioner():
    connector, features = small(), torch.randn(3, 36, 12)
    captions = [torch.tensor([4, 11, 2, 1]), torch.tensor([6, 0])]
    loss = connector.caption_loss(features, GRID, captions)
    losses = []
    for prompt, words in zip(connector.prompts(features, features, GRID, GRID), captions, strict=True):
        sequence = prompt[0]
        for word in words:
            hidden = connector.captioner(inputs_embeds=sequence[None], use_cache=False).last_hidden_state[0, -1]
            embed = connector.captioner.get_input_embeddings()
            losses.append(-(hidden @ embed.weight.T).log_softmax(-1)[word])
            sequence = torch.cat([sequence, embed(word[None])])
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-4)
    loss.backward()
    trained = {name for name, parameter in connector.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in connector.named_parameters() if name.startswith("caption")} == trained
    with pytest.raises(FoveateError, match="have 2 captions, not 1"):
        connector.caption_loss(features, GRID, captions[:1])
    with torch.no_grad(), connector.supervised(captions) as scores:
        connector(features, GRID)
    torch.testing.assert_close(scores[0][0].mean(), loss)
    for given, message in ((captions[:1], "have 2 captions, not 1"), (captions * 2, "have 2 fewer captions")):
        with pytest.raises(FoveateError, match=message), torch.no_grad(), connector.supervised(given):
            connector(features, GRID)


def test_bad_options_are_refused():
    for options, message in (
        ({"layer": 3}, "layer must be a hidden state from 0 to 2"),
        ({"stop": []}, "stop must name"),
        ({"after": [24]}, "after must be a list of tokens from 0 to 23"),
        ({"form": "code"}, "form must be paper or released"),
        ({"heads": 5}, "must divide the width 16"),
    ):
        with pytest.raises(FoveateError, match=message):
            small(**options)
    with pytest.raises(FoveateError, match="pools frames to 12 x 12, and these have 6 x 6"):
        small(caption_image=12)(torch.randn(2, 36, 12), GRID)
    with pytest.raises(FoveateError, match="call read"):
        small(video_width=4)(torch.randn(2, 36, 12), GRID)
