"""HICom: the authors' numbers, a loop over groups, uniform weights, windows, and names of projectors."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import ClipShape, Instruction, build_video_connector, video_connector_of_sizes
from foveate.models.video_connectors.hicom import HICom, _grouped, _windows
from tests.models.llava_video.small_llava_video import clips, small_llava_video, small_processor
from tests.models.video_connectors.released_hicom import CASES, TEXT_WIDTH, WIDTH, features, instruction, weights
from tests.models.video_connectors.small_options import options_of

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "hicom.json").read_text(encoding="utf-8"))


def from_released(released: dict) -> dict:
    found = {}
    for key, value in released.items():
        if key.endswith("logit_bias"):
            continue
        names = [re.sub(f"^{pattern}", ours, key) for pattern, ours in HICom.released_keys.items()]
        found[next(name for name in names if name != key)] = value
    return found


@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case):
    fields, (frames, rows, columns) = CASES[case]
    options = HICom.released_options(fields)
    assert options is not None
    connector = build_video_connector("hicom", WIDTH, TEXT_WIDTH, **options).eval()
    state = from_released(weights({name: torch.Size(shape) for name, shape in GOLDEN["cases"][case]["shapes"].items()}))
    if options["global_guide"] == "direct":
        state.pop("queries")
    connector.load_state_dict(state)
    clip = features(case)
    with torch.no_grad():
        if connector.reads_text:
            tokens = connector(clip, Grid(rows, columns), text=instruction(case))
        else:
            tokens = connector(clip[..., 0, :], Grid(rows, columns))
    assert len(tokens) == connector.output_shape(frames, Grid(rows, columns)).size
    torch.testing.assert_close(tokens, torch.tensor(GOLDEN["cases"][case]["output"]), atol=1e-5, rtol=1e-4)
    if case == "release":  # their queries are all the instruction
        torch.testing.assert_close(tokens[-3:], tokens[-1:].expand(3, -1))


@pytest.fixture
def small():
    torch.manual_seed(0)
    connector = build_video_connector("hicom", 16, 10, frames_per_group=2, group_side=2, queries=3).eval()
    for parameter in connector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return connector, torch.randn(4, 24, 2, 16), Instruction(torch.arange(2), torch.randn(2, 16), torch.randn(16))


def test_equals_a_loop_over_groups(small):
    connector, clip, text = small
    with torch.no_grad():
        tokens = connector(clip, Grid(4, 6), text=text)[:12].view(2, 2, 3, 10)
        keys, values = connector.k_adapter(clip[:, :, 1]), connector.v_adapter(clip[:, :, 0])
        keys, values = (x.view(4, 4, 6, 16) for x in (keys, values))
        for t in range(2):
            for i in range(2):
                for j in range(3):
                    places = [(2 * t + a, 2 * i + b, 2 * j + c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]
                    share = torch.stack([keys[place] @ text.pooled / 4 for place in places]).softmax(0)
                    mixed = sum(weight * values[place] for weight, place in zip(share, places, strict=True))
                    torch.testing.assert_close(tokens[t, i, j], connector.local_readout(mixed), atol=1e-5, rtol=1e-4)


def test_no_instruction_and_no_adapters_average_the_group(small):
    connector, clip, _ = small
    connector.k_adapter.alpha.data.zero_()
    connector.v_adapter.alpha.data.zero_()
    nothing = Instruction(torch.arange(2), torch.zeros(2, 16), torch.zeros(16))
    with torch.no_grad():
        tokens = connector(clip, Grid(4, 6), text=nothing)[:12]
        volume = clip[:, :, 0].view(4, 4, 6, 16).permute(3, 0, 1, 2)
        mean = F.avg_pool3d(volume, 2).flatten(1).T
        torch.testing.assert_close(tokens, connector.local_readout(mean), atol=1e-5, rtol=1e-4)


def test_windows_lose_no_place_and_overlap_by_one():
    for side, length, expected in (
        (6, 3, [[0, 1, 2], [3, 4, 5]]),
        (5, 3, [[0, 1, 2], [2, 3, 4]]),
        (7, 3, [[0, 1, 2], [2, 3, 4], [4, 5, 6]]),
        (3, 4, [[0, 1, 2]]),
    ):
        assert _windows(side, -(-side // length), torch.device("cpu")).tolist() == expected
    volume = torch.arange(4 * 4 * 6.0).view(4, 4, 6, 1)
    windows = [_windows(side, side // 2, volume.device) for side in (4, 4, 6)]
    assert sorted(_grouped(volume, windows).flatten().tolist()) == volume.flatten().tolist()


def test_tokens_of_the_paper():
    connector = video_connector_of_sizes("hicom")
    assert connector.output_shape(32, Grid(27, 27)) == ClipShape(8, 9, 9, 32)
    assert connector.output_shape(32, Grid(27, 27)).size == 680
    assert connector.output_shape(1, Grid(27, 27)) == ClipShape(1, 9, 9, 32)
    with pytest.raises(FoveateError, match="hicom cannot divide 5 frames, rows or columns into windows of 4 and 3"):
        connector.output_shape(5, Grid(27, 27))


def test_names_of_projectors():
    assert HICom.released_options({"mm_projector_type": "mlp2x_gelu"}) is None
    options = HICom.released_options({"mm_projector_type": "local43_global32_coarse", "use_guide": "direct"})
    assert options == {
        "frames_per_group": 4,
        "group_side": 3,
        "local_guide": "direct",
        "adapters": "",
        "learned_scale": "",
        "newline": False,
        "queries": 32,
        "global_guide": "direct",
    }


def test_the_newline_follows_the_groups():
    torch.manual_seed(0)
    connector = build_video_connector("hicom", 16, 10, queries=2, newline=True, local_guide=None, global_guide=None)
    torch.nn.init.normal_(connector.newline)
    with torch.no_grad():
        tokens = connector(torch.randn(4, 9, 16), Grid(3, 3))
    assert len(tokens) == 1 + 1 + 2 and torch.equal(tokens[1], connector.newline)


def test_instructions_that_the_text_encoder_cannot_read_are_refused():
    options = options_of("hicom")
    model, processor = small_llava_video("hicom", **options), small_processor("hicom", **options)
    for words, count in (("", 0), ("w" * 65, 65)):
        batch = processor(videos=clips(4), text="<video>", instructions=[words], return_tensors="pt")
        with pytest.raises(FoveateError, match=f"of 1 to 64 words, and that of clip or image 0 has {count}:"):
            model(**batch)


def test_bad_options():
    for options, message in (
        ({"local_guide": "wide"}, "local_guide must be direct, coarse, fine or null"),
        ({"adapters": "kx"}, "adapters must be letters of qkvgG"),
        ({"learned_scale": "all"}, "learned_scale must be"),
        ({"learned_scale": "local", "local_guide": None}, "needs a local_guide"),
        ({"queries": -1}, "queries must be a whole number from 0 on"),
        ({"newline": 1}, "newline must be true or false"),
    ):
        with pytest.raises(FoveateError, match=message):
            build_video_connector("hicom", 16, 10, **options)
    connector = build_video_connector("hicom", 16, 10)
    with pytest.raises(FoveateError, match="give the model an instruction_config"):
        connector(torch.randn(4, 9, 2, 16), Grid(3, 3), text=Instruction(torch.arange(2)))
