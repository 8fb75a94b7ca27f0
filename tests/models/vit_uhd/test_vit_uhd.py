"""ViT-UHD against a slow reference: one image at a time, loops over tokens and heads, nothing shared."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.activations import ACT2FN

from foveate import FoveateError, ViTUHDConfig, ViTUHDModel
from foveate.models.vit_uhd.attention import Segments, packed_attention, window_order
from foveate.models.vit_uhd.layout import Layout
from tests.checkpointing import checkpoint

GRIDS = [(4, 8), (8, 4), (4, 8), (12, 4)]  # out of order, two alike
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 4,
    "merger_layer_index": [0, 2],
    "init_pos_emb_height": 6,
    "init_pos_emb_width": 6,
    "initializer_range": 0.3,
}
VARIANTS = {
    "released": {},
    "hierarchical": {"rope_layout": "hierarchical"},
    "half": {"rope_layout": "half"},
    "no rotary": {"rope_layout": "none"},
    "antialias": {"position_embedding": "bilinear-antialias"},
    "no table": {"position_embedding": "none"},
    "window positions": {"window_position_embedding": True},
    "gated, rms": {"mlp_type": "gated", "norm_type": "rms_norm", "hidden_act": "silu", "mlp_bias": False},
    "windows": {"window_size": 3, "full_attention_layers": [1]},
    "windows without a table": {"window_size": 2, "position_embedding": "none", "rope_layout": "half"},
    "average": {"merging_method": "average", "final_norm": False, "patch_bias": False, "attention_bias": False},
    "no stages": {"merger_layer_index": []},
}


def build(**options) -> ViTUHDModel:
    model = ViTUHDModel(ViTUHDConfig(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def packed(grids: list[tuple[int, int]], patch: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(rows * columns for rows, columns in grids)
    return {
        "pixel_values": torch.randn(tokens, 3, patch, patch, generator=generator),
        "grid_hws": torch.tensor(grids),
    }


def turned(head: Tensor, row: int, column: int, config: ViTUHDConfig, merges: int) -> Tensor:
    """One head of one token, its channel pairs turned one by one."""
    if config.rope_layout == "none":
        return head
    width = len(head)
    stride = 2**merges if config.rope_layout == "hierarchical" else 1
    result = torch.empty_like(head)
    for pair in range(width // 2):
        quarter = width // 4
        if config.rope_layout == "interleaved":
            place, frequency = (column, row)[pair % 2], pair // 2
        elif config.rope_layout == "hierarchical":
            place, frequency = (column if pair < quarter else row), pair % quarter
        else:
            place, frequency = (row if pair < quarter else column), pair % quarter
        angle = place * stride * config.rope_theta ** (-4 * frequency / width)
        first, second = (pair, pair + width // 2) if config.rope_layout == "half" else (2 * pair, 2 * pair + 1)
        result[first] = head[first] * math.cos(angle) - head[second] * math.sin(angle)
        result[second] = head[second] * math.cos(angle) + head[first] * math.sin(angle)
    return result


def reference(model: ViTUHDModel, pixels: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """The tokens of one image, by the definitions."""
    config = model.config
    rows, columns = grid
    embed = model.patch_embed
    x = torch.stack([F.conv2d(patch[None], embed.proj.weight, embed.proj.bias).flatten() for patch in pixels])
    if embed.pos_emb is not None:
        table = embed.pos_emb.weight.permute(2, 0, 1)[None]
        if config.position_embedding == "bicubic":
            table = F.interpolate(table, size=grid, mode="bicubic")
        else:
            table = F.interpolate(table, size=grid, mode="bilinear", antialias=True)
        x = x + table[0].flatten(1).T
    if embed.window_pos_emb is not None:
        tile = embed.window_pos_emb.weight
        places = [(i // columns % len(tile), i % columns % len(tile)) for i in range(rows * columns)]
        x = x + torch.stack([tile[place] for place in places])

    def norm(module: torch.nn.Module, value: Tensor) -> Tensor:
        if config.norm_type == "rms_norm":
            return value / (value.pow(2).mean() + config.layer_norm_eps).sqrt() * module.weight
        centred = value - value.mean()
        return centred / (centred.pow(2).mean() + config.layer_norm_eps).sqrt() * module.weight + module.bias

    merges = 0
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    for index, block in enumerate(model.encoder.blocks):
        projected = torch.stack([block.wqkv(norm(block.norm0, token)) for token in x]).view(len(x), 3, heads, width)
        windowed = config.window_size is not None and index not in config.full_attention_layers
        places = [(i // columns, i % columns) for i in range(len(x))]
        queries, keys = (
            [
                [turned(projected[i, part, head], *places[i], config, merges) for head in range(heads)]
                for i in range(len(x))
            ]
            for part in (0, 1)
        )
        attended = torch.zeros_like(x)
        for i in range(len(x)):
            neighbours = [
                j
                for j in range(len(x))
                if not windowed
                or (
                    (i // columns // config.window_size == j // columns // config.window_size)
                    and (i % columns // config.window_size == j % columns // config.window_size)
                )
            ]
            for head in range(heads):
                near = torch.stack([keys[j][head] for j in neighbours])
                scores = (near @ queries[i][head] / math.sqrt(width)).softmax(0)
                attended[i, head * width : (head + 1) * width] = scores @ projected[neighbours, 2, head]
        x = x + block.wo(attended)
        act = ACT2FN[config.hidden_act]
        hidden = torch.stack([norm(block.norm1, token) for token in x])
        if config.mlp_type == "gated":
            x = x + block.mlp.fc1(act(block.mlp.gate(hidden)) * block.mlp.fc0(hidden))
        else:
            x = x + block.mlp.fc1(act(block.mlp.fc0(hidden)))
        if index in config.merger_layer_index:
            merged = []
            for row in range(0, rows, 2):
                for column in range(0, columns, 2):
                    four = [x[(row + i) * columns + column + j] for i in (0, 1) for j in (0, 1)]
                    mean = sum(four) / 4
                    if config.merging_method == "average":
                        merged.append(mean)
                        continue
                    first, _, second = block.merger.attn_layer
                    logits = [second(F.gelu(first(torch.cat((token, mean))))) for token in four]
                    total = sum(logit.exp() for logit in logits)
                    merged.append(sum(logit.exp() / total * token for logit, token in zip(logits, four, strict=True)))
            x = torch.stack(merged)
            rows, columns, merges = rows // 2, columns // 2, merges + 1
    if config.final_norm:
        x = torch.stack([norm(model.encoder.final_layernorm, token) for token in x])
    return x, (rows, columns)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_packed_batch_equals_the_slow_reference(variant: str, attention: str) -> None:
    model = build(**VARIANTS[variant])
    model.set_attn_implementation(attention)
    inputs = packed(GRIDS)
    output = model(**inputs)
    images = inputs["pixel_values"].split([rows * columns for rows, columns in GRIDS])
    expected = [reference(model, image, grid) for image, grid in zip(images, GRIDS, strict=True)]
    torch.testing.assert_close(output.last_hidden_state, torch.cat([x for x, _ in expected]), rtol=1e-4, atol=1e-4)
    assert output.grid_hws.tolist() == [list(grid) for _, grid in expected]


def test_inference_and_training_mode_arithmetic_agree() -> None:
    """Without gradients the rotation is done in place; that must not be visible."""
    model = build()
    inputs = packed(GRIDS)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-6)


def test_hidden_states_are_in_the_callers_order() -> None:
    model = build(window_size=3)
    inputs = packed(GRIDS)
    together = model(**inputs, output_hidden_states=True).hidden_states
    assert len(together) == model.config.num_hidden_layers + 1
    alone = [
        model(image, torch.tensor([grid]), output_hidden_states=True).hidden_states
        for image, grid in zip(inputs["pixel_values"].split([a * b for a, b in GRIDS]), GRIDS, strict=True)
    ]
    for level, states in enumerate(together):
        expected = torch.cat([states[level] for states in alone])
        torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)
    assert model(**inputs).hidden_states is None


def test_a_tuple_on_request() -> None:
    hidden, grids = build()(**packed(GRIDS), return_dict=False)
    assert hidden.shape == (9, 32)
    assert grids.tolist() == [[1, 2], [2, 1], [1, 2], [3, 1]]


@pytest.mark.parametrize("variant", ["released", "windows", "gated, rms"])
def test_gradient_checkpointing_changes_no_gradient(variant: str) -> None:
    model = build(**VARIANTS[variant]).train()
    inputs = packed(GRIDS)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint(model)
        model.zero_grad()
        model(**inputs).last_hidden_state.square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_gradients_equal_those_of_the_reference() -> None:
    model = build(initializer_range=0.1)
    inputs = packed([(4, 8)])
    reference(model, inputs["pixel_values"], (4, 8))[0].square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(**inputs).last_hidden_state.square().sum().backward()
    for name, parameter in model.named_parameters():
        scale = expected[name].abs().max().clamp(min=1.0)
        torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def test_bfloat16_stays_close() -> None:
    model = build(initializer_range=0.05)
    inputs = packed(GRIDS)
    expected = model(**inputs).last_hidden_state
    output = model.to(torch.bfloat16)(**inputs).last_hidden_state
    assert output.dtype == torch.bfloat16
    assert F.cosine_similarity(output.float(), expected, dim=-1).min() > 0.98


@torch.no_grad()
def test_save_and_load_through_the_auto_classes(tmp_path) -> None:
    model = build(window_position_embedding=True, rope_layout="hierarchical", merging_method=["average", "early"])
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == model.config.to_diff_dict()
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, ViTUHDModel)
    inputs = packed(GRIDS)
    assert torch.equal(loaded(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


sides = st.integers(1, 4).map(lambda side: 4 * side)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=6), st.integers(0, 3))
def test_layouts_pack_merge_and_unpack(grids: list[tuple[int, int]], window: int) -> None:
    tokens = sum(rows * columns for rows, columns in grids)
    layout = Layout.from_grids(torch.tensor(grids), tokens, 2)
    names = torch.arange(tokens)[:, None].float()
    assert torch.equal(layout.unpack(layout.pack(names)), names)
    assert layout.num_tokens == tokens
    assert len(layout.groups) == len(set(grids))

    # Tokens named by the number of the image and their window must merge with their like.
    labels = torch.cat(
        [
            torch.stack([torch.tensor([image, i // 2, j // 2]) for i in range(rows) for j in range(columns)])
            for image, (rows, columns) in enumerate(grids)
        ]
    ).float()
    windows = layout.windows(layout.pack(labels))
    assert (windows == windows[:, :1]).all()
    merged = layout.merged()
    assert merged.merges == 1
    assert torch.equal(
        merged.unpack(windows[:, 0])[:, 0],
        labels[:, 0]
        .unique_consecutive()
        .repeat_interleave(torch.tensor([rows * columns // 4 for rows, columns in grids])),
    )
    assert merged.grid_hws("cpu").tolist() == [[rows // 2, columns // 2] for rows, columns in grids]

    order, segments = window_order(layout, window + 1)
    assert sorted(order.tolist()) == list(range(tokens))
    assert segments.boundaries[-1] == tokens
    assert segments.longest <= (window + 1) ** 2


def test_segments_of_one_length_attend_together_and_nothing_changes() -> None:
    """Packed attention over runs of mixed lengths against a loop over segments."""
    torch.manual_seed(0)
    segments = Segments(((2, 4), (1, 2), (3, 4), (2, 2), (1, 3)))
    order, back, grouped = segments.by_length
    assert grouped.runs == ((5, 4), (3, 2), (1, 3))
    assert torch.equal(order[back], torch.arange(segments.boundaries[-1]))
    assert grouped.by_length is None
    block = build().encoder.blocks[0]
    query, key, value = torch.randn(3, segments.boundaries[-1], block.num_heads, 8)
    block.scaling = 8**-0.5
    expected = []
    for start, stop in pairwise(segments.boundaries):
        weights = torch.einsum("qhd,khd->hqk", query[start:stop], key[start:stop]) * block.scaling
        expected.append(torch.einsum("hqk,khd->qhd", weights.softmax(-1), value[start:stop]).flatten(1))
    found = packed_attention(block, query, key, value, segments)
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize(
    ("pixels", "grids", "message"),
    [
        ((32, 3, 4, 4), [[4, 6]], "image 0 has 4 x 6 patches, but 2 stages need both sides to be multiples of 4"),
        ((32, 3, 4, 4), [[4, 4]], "grid_hws describes 16 patches, but pixel_values holds 32"),
        ((32, 3, 5, 5), [[4, 8]], r"must be packed patches \(L, 3, 4, 4\), not \(32, 3, 5, 5\)"),
        ((1, 32, 3, 4, 4), [[4, 8]], r"not \(1, 32, 3, 4, 4\)"),
        ((0, 3, 4, 4), [[0, 8]], "image 0 has an empty grid of 0 x 8"),
        ((0, 3, 4, 4), [], r"must be \(images, 2\) with at least one image"),
        ((32, 3, 4, 4), [[1, 4, 8]], r"must be \(images, 2\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(pixels: tuple[int, ...], grids: list[list[int]], message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        build()(torch.zeros(pixels), torch.tensor(grids, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merging_method": "median"}, "'median' is not known; possible are content-adaptive, average, early"),
        ({"merging_method": ["average"]}, "lists 1 kinds for 2 stages"),
        ({"merger_layer_index": [0, 4]}, "must name different blocks between 0 and 3"),
        ({"merger_layer_index": [1, 1]}, "must name different blocks"),
        ({"rope_layout": "spiral"}, "rope_layout='spiral' is not known"),
        ({"hidden_size": 36}, "multiple of 4"),
        ({"num_attention_heads": 5}, "must be a multiple of num_attention_heads=5"),
        ({"window_size": 0}, "window_size=0"),
        ({"patch_size": 0}, "patch_size=0"),
    ],
)
def test_configurations_that_cannot_be_are_named(options: dict, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        ViTUHDConfig(**{**SMALL, **options})
