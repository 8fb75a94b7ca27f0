"""CrossLMM: loops over rows of the sequence and over patches, and which rows each attention touches."""

import pytest
import torch

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import ClipShape, build_video_connector, video_connector_of_sizes
from foveate.models.video_connectors.crosslmm import CrossLMMReader
from foveate.models.visual_memory import VisualMemory
from tests.models.llava_video.small_llava_video import small_batch, small_config, small_llava_video, small_processor
from tests.models.video_connectors.small_options import options_of


@pytest.fixture
def reader():
    torch.manual_seed(0)
    made = CrossLMMReader(small_config().text_config).eval()  # 4 heads of width 8, keys of 2
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made


def test_equals_a_loop_over_rows(reader):
    hidden, states = torch.randn(2, 5, 32), torch.randn(2, 6, 32)
    visual = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    text = torch.tensor([[1, 0, 0, 1, 1], [0, 1, 1, 0, 0]]).bool()  # the last two of the second are padding
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        output = reader(hidden, VisualMemory(states, mask, text, visual))
        for row in range(2):
            keys, values = reader.kv_proj(reader.norm(states[row][mask[row]])).view(-1, 2, 2, 8).unbind(1)
            for column in range(5):
                expected = hidden[row, column]
                if visual[row, column] or text[row, column]:
                    attention = reader.visual if visual[row, column] else reader.text
                    query = attention.q_proj(attention.norm(hidden[row, column])).view(4, 8)
                    heads = []
                    for head in range(4):
                        share = (keys[:, head // 2] @ query[head] / 8**0.5).softmax(0)
                        heads.append(share @ values[:, head // 2])
                    expected = expected + reader.gamma * attention.out_proj(torch.cat(heads))
                torch.testing.assert_close(output[row, column], expected, atol=1e-5, rtol=1e-4)


def test_what_was_projected_without_gradients_is_projected_anew_with_them(reader):
    hidden, columns = torch.randn(1, 4, 32), torch.tensor([[1, 1, 0, 0]]).bool()
    memory = VisualMemory(torch.randn(1, 3, 32), torch.ones(1, 3).bool(), ~columns, columns)
    with torch.no_grad():
        expected = reader(hidden, memory)
    output = reader(hidden, memory)
    output.sum().backward()
    assert torch.equal(output, expected) and float(reader.kv_proj.weight.grad.abs().sum()) > 0


def test_each_attention_touches_its_own_rows(reader):
    hidden, states = torch.randn(1, 4, 32), torch.randn(1, 3, 32)
    visual = torch.tensor([[1, 1, 0, 0]]).bool()
    memory = VisualMemory(states, torch.ones(1, 3).bool(), ~visual, visual)
    with torch.no_grad():
        before = reader(hidden, memory)
        memory.projected.clear()
        torch.nn.init.zeros_(reader.text.out_proj.weight)
        torch.nn.init.zeros_(reader.text.out_proj.bias)
        after = reader(hidden, memory)
    assert torch.equal(before[visual], after[visual]) and torch.equal(after[~visual], hidden[~visual])
    assert not torch.allclose(before[~visual], hidden[~visual], atol=1e-3)


def test_a_new_model_reads_the_pooled_tokens_alone():
    options = options_of("crosslmm")
    model, batch = small_llava_video("crosslmm", **options), small_batch(small_processor("crosslmm", **options))
    with torch.no_grad():
        new = model(**batch).logits
        for one in model.model.memory_readers.values():
            torch.nn.init.normal_(one.kv_proj.weight)
        assert torch.equal(model(**batch).logits, new)
        for one in model.model.memory_readers.values():
            torch.nn.init.constant_(one.gamma, 0.5)
        assert not torch.allclose(model(**batch).logits, new, atol=1e-3)
        answer = {"max_new_tokens": 4, "do_sample": False}
        assert torch.equal(model.generate(**batch, **answer), model.generate(**batch, **answer, use_cache=False))


def test_pooling_of_equal_squares_weighs_every_patch():
    connector = build_video_connector("crosslmm", 4, 4, tokens=1)
    connector.projector = torch.nn.Identity()
    features = torch.zeros(1, 9, 4)
    for patch in range(9):
        own = features.clone()
        own[0, patch] = 1
        assert bool((connector(own, Grid(3, 3)) > 0).all())
    ones = connector(torch.ones(2, 9, 4), Grid(3, 3))
    torch.testing.assert_close(ones, torch.ones(2, 4))


def test_tokens_of_the_paper():
    for tokens in (1, 9, 16):
        connector = video_connector_of_sizes("crosslmm", {"tokens": tokens})
        assert connector.output_shape(256, Grid(27, 27)).size == 256 * tokens
        assert connector.memory_size(256, Grid(27, 27)) == 256 * 729
    assert video_connector_of_sizes("crosslmm").output_shape(2, Grid(27, 27)) == ClipShape(2, 3, 3)
    assert video_connector_of_sizes("crosslmm", {"every": 8, "first": 2}).decoder_layers(28) == (2, 10, 18, 26)


def test_bad_options():
    with pytest.raises(FoveateError, match="tokens must be a square number, not 8"):
        build_video_connector("crosslmm", 4, 4, tokens=8)
    with pytest.raises(FoveateError, match="makes 4 x 4 tokens of a frame, and these have 3 x 9 patches"):
        video_connector_of_sizes("crosslmm", {"tokens": 16}).output_shape(1, Grid(3, 9))
