"""Identities of the early compressor (LLaVA-UHD v4) and its agreement with MiniCPM-V 4.6 in transformers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import MiniCPMV4_6VisionConfig
from transformers.models.minicpmv4_6.modeling_minicpmv4_6 import MiniCPMV4_6ViTWindowAttentionMerger

from foveate import ViTUHDConfig, ViTUHDModel
from foveate.models.vit_uhd.early_compression import EarlyCompressor
from foveate.models.vit_uhd.layout import Layout
from foveate.models.vit_uhd.vit_uhd import ViTUHDBlock

KINDS = [
    {},
    {"mlp_type": "gated", "norm_type": "rms_norm", "hidden_act": "silu"},
    {"attention_bias": False, "mlp_bias": False},
]


def small_config(**options) -> ViTUHDConfig:
    return ViTUHDConfig(
        **{
            "patch_size": 4,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "init_pos_emb_height": 4,
            "init_pos_emb_width": 4,
            "merger_layer_index": [1],
            "merging_method": "early",
            **options,
        }
    )


def random_block(config: ViTUHDConfig, seed: int = 0) -> ViTUHDBlock:
    """A block without a stage, every parameter random, in double precision."""
    torch.manual_seed(seed)
    block = ViTUHDBlock(config, index=0).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.4)
    return block.eval()


def reused(**options) -> tuple[EarlyCompressor, ViTUHDBlock]:
    config = small_config(**options)
    block = random_block(config)
    stage = EarlyCompressor(config).double().eval()
    stage.init_from_block(block)
    return stage, block


def windows(count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 16, dtype=torch.float64, generator=generator)


def window_attention(block: ViTUHDBlock, window: torch.Tensor) -> torch.Tensor:
    """A block's attention among the four tokens of one window (4, D), head by head, without positions."""
    query, key, value = block.wqkv(block.norm0(window)).chunk(3, dim=-1)
    size = window.shape[-1] // block.num_heads
    heads = []
    for head in range(block.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / size**0.5
        heads.append(scores.softmax(-1) @ value[:, part])
    return window + block.wo(torch.cat(heads, dim=-1))


@pytest.mark.parametrize("options", KINDS)
def test_reuse_with_per_token_norm_is_block_k_once_more_then_the_mean(options: dict) -> None:
    stage, block = reused(early_per_token_norm=True, **options)
    x = windows(5)
    expected = []
    for window in x:
        y = window_attention(block, window)
        expected.append((y + block.mlp(block.norm1(y))).mean(0))
    torch.testing.assert_close(stage(x), torch.stack(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("options", KINDS)
def test_four_equal_tokens_give_the_blocks_own_output(options: dict, per_token: bool) -> None:
    """A constant window: attention sees one token four times, joint statistics are those of the token."""
    stage, block = reused(early_per_token_norm=per_token, **options)
    tokens = windows(3)[:, 0]
    for token, output in zip(tokens, stage(tokens[:, None].expand(-1, 4, -1)), strict=True):
        y = window_attention(block, token[None])
        torch.testing.assert_close(output, (y + block.mlp(block.norm1(y)))[0], rtol=0, atol=1e-10)


def test_joint_norm_makes_reuse_approximate_only() -> None:
    """For different tokens the paper's joint norm departs from the per-token identity: both are offered."""
    joint, block = reused()
    x = windows(50)
    expected = torch.stack(
        [(y + block.mlp(block.norm1(y))).mean(0) for y in (window_attention(block, window) for window in x)]
    )
    assert (joint(x) - expected).abs().max() > 1e-2


def test_the_equations_with_a_joint_norm() -> None:
    """out = mean(y) + W2 act(W1 norm([y1;y2;y3;y4]) + b1) + b2, token by token."""
    stage, block = reused()
    hidden_width = block.mlp.fc0.out_features
    for window, output in zip(windows(4), stage(windows(4)), strict=True):
        y = window_attention(block, window)
        flat = torch.cat(list(y))
        flat = (flat - flat.mean()) / (flat.var(correction=0) + block.norm1.eps).sqrt()
        flat = flat * block.norm1.weight.repeat(4) + block.norm1.bias.repeat(4)
        expected = y.mean(0) + block.mlp.fc1.bias
        for place in range(4):
            token = flat[place * 16 : (place + 1) * 16]
            hidden = F.gelu(block.mlp.fc0.weight @ token + block.mlp.fc0.bias, approximate="tanh")
            assert hidden.shape == (hidden_width,)
            expected = expected + block.mlp.fc1.weight @ hidden / 4
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


def test_tokens_of_other_windows_do_not_matter() -> None:
    stage, _ = reused()
    x = windows(6)
    changed = x.clone()
    changed[3] = windows(1, seed=9)[0]
    same = [0, 1, 2, 4, 5]
    torch.testing.assert_close(stage.attend(x)[same], stage.attend(changed)[same], rtol=0, atol=1e-12)
    torch.testing.assert_close(stage(x)[same], stage(changed)[same], rtol=0, atol=1e-12)
    assert (stage(x)[3] - stage(changed)[3]).abs().max() > 1e-3


@pytest.mark.parametrize("options", KINDS)
def test_every_parameter_learns_from_the_first_step(options: dict) -> None:
    """Of wqkv.bias only the key's third stays: a softmax over keys cannot see it."""
    stage, _ = reused(**options)
    (stage(windows(8)) * windows(8, seed=3)[:, 0]).sum().backward()
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-8, name


def test_reuse_copies_and_leaves_the_block_alone() -> None:
    stage, block = reused()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.add_(1)
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_fresh_stage_treats_the_four_tokens_alike() -> None:
    torch.manual_seed(0)
    stage = ViTUHDModel(small_config()).encoder.blocks[1].merger
    blocks = stage.fc0.weight.unflatten(0, (4, -1)).unflatten(-1, (4, -1)).transpose(1, 2)  # (4, 4, F, D)
    assert blocks[0, 0].std() > 0
    for row in range(4):
        for column in range(4):
            expected = blocks[0, 0] if row == column else torch.zeros_like(blocks[0, 0])
            assert torch.equal(blocks[row, column], expected)
    parts = stage.fc1.weight.chunk(4, dim=1)
    assert parts[0].std() > 0
    assert all(torch.equal(part, parts[0]) for part in parts)
    assert stage.fc0.bias.abs().max() == 0
    assert torch.equal(stage.norm1.weight, torch.ones(64))


def minicpm_merger(stage: EarlyCompressor) -> MiniCPMV4_6ViTWindowAttentionMerger:
    """The transformers class with the weights of a stage."""
    width = stage.fc1.out_features
    config = MiniCPMV4_6VisionConfig(
        hidden_size=width,
        intermediate_size=stage.fc1.in_features // 4,
        num_attention_heads=stage.num_heads,
        num_hidden_layers=1,
        layer_norm_eps=stage.norm0.eps,
        hidden_act="gelu_pytorch_tanh",
        attn_implementation="sdpa",
    )
    merger = MiniCPMV4_6ViTWindowAttentionMerger(config).double().eval()
    weights = {
        "layer_norm1": stage.norm0,
        "pre_norm": stage.norm1,
        "linear_1": stage.fc0,
        "linear_2": stage.fc1,
    }
    weights["self_attn.out_proj"] = stage.wo
    with torch.no_grad():
        for name, source in weights.items():
            merger.get_submodule(name).load_state_dict(source.state_dict())
        for row, name in enumerate(("q_proj", "k_proj", "v_proj")):
            projection = merger.get_submodule(f"self_attn.{name}")
            projection.weight.copy_(stage.wqkv.weight.chunk(3)[row])
            projection.bias.copy_(stage.wqkv.bias.chunk(3)[row])
    return merger


@pytest.mark.parametrize("grids", [[(4, 6)], [(2, 2)], [(4, 4), (4, 4)], [(6, 2), (2, 8), (4, 4)]])
def test_the_same_numbers_as_minicpm_v(grids: list[tuple[int, int]]) -> None:
    """Packed images through our stage; MiniCPM-V's class gets each image by itself."""
    torch.manual_seed(0)
    config = small_config()
    stage = EarlyCompressor(config).double().eval()
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.4)
    merger = minicpm_merger(stage)
    lengths = [rows * columns for rows, columns in grids]
    x = torch.randn(sum(lengths), 16, dtype=torch.float64)
    layout = Layout.from_grids(torch.tensor(grids), len(x), 1)
    with torch.no_grad():
        ours = layout.merged().unpack(stage(layout.windows(layout.pack(x))))
        theirs = [
            merger(image[None], torch.tensor([grid]))[0] for image, grid in zip(x.split(lengths), grids, strict=True)
        ]
    torch.testing.assert_close(ours, torch.cat(theirs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("per_token", [False, True])
def test_inside_a_model(per_token: bool, tmp_path) -> None:
    """Packed equals alone, the grid halves, gradients reach the patches, and saving keeps the kind of stage."""
    torch.manual_seed(0)
    model = ViTUHDModel(small_config(early_per_token_norm=per_token, initializer_range=0.2)).eval()
    grids = torch.tensor([[4, 6], [2, 2], [4, 6]])
    patches = torch.randn(52, 3, 4, 4, requires_grad=True)
    output = model(patches, grids)
    assert output.grid_hws.tolist() == [[2, 3], [1, 1], [2, 3]]
    alone = [
        model(image, grid[None]).last_hidden_state
        for image, grid in zip(patches.split([24, 4, 24]), grids, strict=True)
    ]
    torch.testing.assert_close(output.last_hidden_state, torch.cat(alone), rtol=0, atol=1e-5)
    output.last_hidden_state.square().sum().backward()
    assert patches.grad is not None
    assert patches.grad.abs().amax((1, 2, 3)).min() > 0

    model.save_pretrained(tmp_path)
    loaded = ViTUHDModel.from_pretrained(tmp_path).eval()
    assert loaded.config.merging_method == "early"
    assert loaded.config.early_per_token_norm is per_token
    with torch.no_grad():
        again = loaded(patches, grids).last_hidden_state
    torch.testing.assert_close(again, output.last_hidden_state, rtol=0, atol=1e-6)
