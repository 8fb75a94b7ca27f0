"""`from_vit`: converted towers against the real classes of transformers, on small random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from foveate import FoveateError, ViTUHDConfig, ViTUHDModel
from foveate.models.llava_uhd.configuration import LlavaUHDConfig
from foveate.models.llava_uhd.modeling import LlavaUHDForConditionalGeneration
from foveate.models.vit_uhd import from_vit
from foveate.models.vit_uhd.rotary_channels import rotary_channels
from tests.models.vit_uhd.towers import FAMILIES, PATCH, TEXT, build, tower_of

SIZES = [(4, 8), (8, 4), (12, 20), (4, 8)]  # patches; some beyond one window of Qwen2.5-VL (8 patches)


def images(sizes: list[tuple[int, int]] = SIZES, patch: int = PATCH) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, rows * patch, columns * patch, generator=generator) for rows, columns in sizes]


def patchify(pictures: list[torch.Tensor], patch: int = PATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed row-major patches (L, 3, p, p) and grids, by loops over rows and columns."""
    packed, grids = [], []
    for picture in pictures:
        rows, columns = picture.shape[1] // patch, picture.shape[2] // patch
        grids.append([rows, columns])
        for row in range(rows):
            for column in range(columns):
                packed.append(picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch])
    return torch.stack(packed), torch.tensor(grids)


def block_order(grids: torch.Tensor) -> torch.Tensor:
    """Where each patch of the row-major sequence stands in one by 2 x 2 blocks (Qwen)."""
    order, start = [], 0
    for rows, columns in grids.tolist():
        places = torch.arange(start, start + rows * columns).view(rows // 2, 2, columns // 2, 2)
        order.append(places.transpose(1, 2).flatten().argsort() + start)
        start += rows * columns
    return torch.cat(order)


def source_output(family: str, tower: nn.Module, pictures: list[torch.Tensor]) -> torch.Tensor:
    """What the tower returns before its own merger or pooling, row-major; inputs as its own processor cuts them."""
    _, grids = patchify(pictures)
    grid_thw = F.pad(grids, (1, 0), value=1)
    if family == "kimi":
        return tower(patchify(pictures)[0], grid_thw=grid_thw).last_hidden_state
    if family == "siglip2":
        parts = [torch.from_numpy(convert_image_to_patches(picture.numpy(), PATCH)) for picture in pictures]
        longest = max(map(len, parts))
        padded = torch.stack([F.pad(part, (0, 0, 0, longest - len(part))) for part in parts])
        mask = torch.stack([torch.arange(longest) < len(part) for part in parts]).int()
        output = tower(padded, pixel_attention_mask=mask, spatial_shapes=grids).last_hidden_state
        return torch.cat([tokens[: len(part)] for tokens, part in zip(output, parts, strict=True)])
    processor = Qwen2VLImageProcessorPil(patch_size=PATCH)
    parts = [processor.patchify(np.asarray(picture), PATCH, 2, 2)[0] for picture in pictures]
    output = tower(torch.from_numpy(np.concatenate(parts)), grid_thw=grid_thw).last_hidden_state
    if family == "qwen2_5_vl":  # returned by windows of 8 x 8 patches
        output = undo_windows(output, grids)
    return output[block_order(grids)]


def undo_windows(tokens: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """Tokens by windows of 4 x 4 blocks -> by blocks, row-major."""
    places, start = [], 0
    for rows, columns in grids.tolist():
        blocks = torch.arange(start, start + rows * columns // 4).view(rows // 2, columns // 2)
        for strip in blocks.split(4, dim=0):
            places += [window.flatten() for window in strip.split(4, dim=1)]
        start += rows * columns // 4
    order = torch.cat(places).argsort()
    return tokens.unflatten(0, (-1, 4))[order].flatten(0, 1)


def run(model: ViTUHDModel, pictures: list[torch.Tensor], **options: Any) -> Any:
    patches, grids = patchify(pictures, model.config.patch_size)
    with torch.no_grad():
        return model(patches, grids, **options)


@pytest.mark.parametrize("whole", [False, True], ids=["tower", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_patch_and_no_stages_is_the_source(family: str, whole: bool) -> None:
    source = build(family)
    tower = tower_of(source)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    model = from_vit(source if whole else tower)
    assert model.config.num_stages == 0
    assert model.config.patch_size == PATCH
    with torch.no_grad():
        expected = source_output(family, tower, images())
    assert expected.std() > 0.1
    torch.testing.assert_close(run(model, images()).last_hidden_state, expected, rtol=0, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())


@pytest.mark.parametrize("family", ["kimi", "qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("layout", ["interleaved", "hierarchical", "half"])
def test_the_order_of_rotary_channels_does_not_matter_without_stages(family: str, layout: str) -> None:
    source = build(family)
    model = from_vit(source, rope_layout=layout)
    assert model.config.rope_layout == layout
    with torch.no_grad():
        expected = source_output(family, tower_of(source), images())
    torch.testing.assert_close(run(model, images()).last_hidden_state, expected, rtol=0, atol=1e-4)


def test_rotary_channels_by_hand() -> None:
    """Head of 8 channels: index 4 * axis + 2 * frequency + member, x = axis 0."""
    assert rotary_channels("hierarchical", 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert rotary_channels("interleaved", 8).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert rotary_channels("half", 8).tolist() == [4, 6, 0, 2, 5, 7, 1, 3]
    assert rotary_channels("half-interleaved", 8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def average(tokens: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """avg_pool2d of every image of a packed sequence."""
    pooled = []
    for image, (rows, columns) in zip(tokens.split(grids.prod(1).tolist()), grids.tolist(), strict=True):
        plane = image.view(rows, columns, -1).permute(2, 0, 1)
        pooled.append(F.avg_pool2d(plane[None], 2)[0].flatten(1).T)
    return torch.cat(pooled)


@pytest.mark.parametrize("method", ["content-adaptive", "average"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stage_starts_as_average_pooling_at_its_place(family: str, method: str) -> None:
    """Up to the stage the source itself, at the stage its average, after the last block its average normed."""
    source = build(family)
    grids = torch.tensor(SIZES)
    plain = run(from_vit(source), images(), output_hidden_states=True)
    model = from_vit(source, merger_layer_index=[1], merging_method=method)
    output = run(model, images(), output_hidden_states=True)
    assert output.grid_hws.tolist() == (grids // 2).tolist()
    torch.testing.assert_close(output.hidden_states[1], plain.hidden_states[1], rtol=0, atol=1e-5)
    expected = average(plain.hidden_states[2], grids)
    torch.testing.assert_close(output.hidden_states[2], expected, rtol=0, atol=1e-5)

    last = from_vit(source, merger_layer_index=[3], merging_method=method)
    expected = average(plain.hidden_states[4], grids)
    if model.config.final_norm:
        expected = last.encoder.final_layernorm(expected)
    torch.testing.assert_close(run(last, images()).last_hidden_state, expected.detach(), rtol=0, atol=1e-5)


def test_blocks_after_a_stage_are_the_sources_own_on_the_pooled_grid() -> None:
    """Kimi's own blocks, called by hand: two blocks, average, two blocks with the positions of the smaller grid."""
    source = build("kimi")
    tower = tower_of(source)
    rows, columns = 8, 12
    picture = images([(rows, columns)])
    tokens, _ = patchify(picture)
    with torch.no_grad():
        x = tower.patch_embed(tokens, torch.tensor([[1, rows, columns]]))
        for index, block in enumerate(tower.layers):
            if index == 2:
                x = average(x, torch.tensor([[rows, columns]]))
                rows, columns = rows // 2, columns // 2
            places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
            rotation = tower.rotary_emb(x, places.flatten(0, 1))
            x = block(x, cu_seqlens=torch.tensor([0, len(x)]), position_embeddings=rotation)
        expected = tower.final_layernorm(x)
    model = from_vit(source, merger_layer_index=[1])
    torch.testing.assert_close(run(model, picture).last_hidden_state, expected, rtol=0, atol=1e-4)
    hierarchical = from_vit(source, merger_layer_index=[1], rope_layout="hierarchical")
    assert (run(hierarchical, picture).last_hidden_state - expected).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_content_adaptive_stages_learn(family: str) -> None:
    model = from_vit(build(family), merger_layer_index=[0, 2])
    patches, grids = patchify(images())
    model(patches, grids).last_hidden_state.square().mean().backward()
    for index in (0, 2):
        assert model.encoder.blocks[index].merger.attn_layer[2].weight.grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_early_stages_reuse_the_block_before_them(family: str) -> None:
    model = from_vit(build(family), merger_layer_index=[1], merging_method="early", early_per_token_norm=True)
    block = model.encoder.blocks[1]
    x = torch.randn(3, 1, 32)
    with torch.no_grad():
        value = block.wqkv(block.norm0(x)).chunk(3, -1)[2]
        y = x + block.wo(value)  # attention among equal tokens returns their value
        expected = (y + block.mlp(block.norm1(y)))[:, 0]
        torch.testing.assert_close(block.merger(x.expand(-1, 4, -1)), expected, rtol=0, atol=1e-4)
    assert run(model, images()).last_hidden_state.shape == (sum(r * c for r, c in SIZES) // 4, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_twice_the_patch_on_patches_magnified_one_by_one_is_the_source(family: str) -> None:
    """The pseudo-inverse is exact when patches grow, through the whole tower."""
    source = build(family)
    model = from_vit(source, patch_size=2 * PATCH)
    patches, grids = patchify(images())
    magnified = F.interpolate(patches, scale_factor=2, mode="bilinear", antialias=True)
    with torch.no_grad():
        output = model(magnified, grids).last_hidden_state
        expected = source_output(family, tower_of(source), images())
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_smaller_patch_by_the_adjoint_is_the_source_on_magnified_patches(family: str) -> None:
    source = build(family)
    model = from_vit(source, patch_size=4, resize_method="adjoint", resize_mode="bicubic")
    same = from_vit(source)
    patches, grids = patchify(images(patch=4), 4)
    magnified = F.interpolate(patches, size=(PATCH, PATCH), mode="bicubic", antialias=True)
    with torch.no_grad():
        output, expected = model(patches, grids), same(magnified, grids)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_with_the_norm_of_its_merger(family: str) -> None:
    source = build(family)
    tower = tower_of(source)
    model = from_vit(source, final_norm=True)
    with torch.no_grad():
        expected = tower.merger.ln_q(source_output(family, tower, images()))
    torch.testing.assert_close(run(model, images()).last_hidden_state, expected, rtol=0, atol=1e-4)


def test_without_the_final_norm() -> None:
    source = build("siglip2")
    plain = from_vit(source, final_norm=False)
    expected = run(from_vit(source), images(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(run(plain, images()).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True], ids=["tower", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_folder(family: str, whole: bool, tmp_path: Path) -> None:
    """Whatever names transformers writes: Kimi's whole model goes back to MoonViT's original layout."""
    source = build(family)
    (source if whole else tower_of(source)).save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    model = from_vit(tmp_path, patch_size=4, merger_layer_index=[0])
    expected = from_vit(source, patch_size=4, merger_layer_index=[0])
    pictures = images(patch=4)
    torch.testing.assert_close(
        run(model, pictures).last_hidden_state, run(expected, pictures).last_hidden_state, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = from_vit(build(family), merger_layer_index=[0, 1], merging_method=["early", "average"])
    model.save_pretrained(tmp_path)
    loaded = ViTUHDModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        run(loaded, images()).last_hidden_state, run(model, images()).last_hidden_state, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_dtype_is_the_sources(family: str) -> None:
    source = build(family)
    model = from_vit(source.to(torch.bfloat16), patch_size=4, merger_layer_index=[1])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert run(model, images(patch=4)).last_hidden_state.dtype == torch.bfloat16


def vit_uhd(**options: Any) -> ViTUHDModel:
    torch.manual_seed(0)
    config = ViTUHDConfig(
        **{
            "patch_size": PATCH,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "init_pos_emb_height": 4,
            "init_pos_emb_width": 4,
            "merger_layer_index": [0, 2],
            "initializer_range": 0.2,
            **options,
        }
    )
    model = ViTUHDModel(config).eval()
    for name, parameter in model.named_parameters():
        if ".merger." in name:
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("rope_layout", ["interleaved", "hierarchical", "half", "none"])
def test_vit_uhd_keeps_its_trained_stages(rope_layout: str) -> None:
    source = vit_uhd(rope_layout=rope_layout)
    same = from_vit(source)
    assert same.config.to_diff_dict() == source.config.to_diff_dict()
    expected = run(source, images()).last_hidden_state
    torch.testing.assert_close(run(same, images()).last_hidden_state, expected, rtol=0, atol=0)


def test_vit_uhd_with_other_stages_keeps_those_it_has() -> None:
    source = vit_uhd()
    model = from_vit(source, merger_layer_index=[0, 1, 3])
    old, new = source.encoder.blocks, model.encoder.blocks
    assert torch.equal(new[0].merger.attn_layer[2].weight, old[0].merger.attn_layer[2].weight)
    assert new[1].merger.attn_layer[2].weight.abs().max() == 0
    assert new[2].merger is None
    assert torch.equal(new[3].wqkv.weight, old[3].wqkv.weight)
    other = from_vit(source, merger_layer_index=[0], merging_method="early")
    assert torch.equal(other.encoder.blocks[0].merger.wqkv.weight, old[0].wqkv.weight)


def test_a_released_folder_can_be_converted() -> None:
    folder = Path(__file__).parents[2] / "golden" / "vit_uhd" / "content-2-stages"
    model = from_vit(folder)
    loaded = ViTUHDModel.from_pretrained(folder).eval()
    pictures = images([(4, 8)], patch=10)
    torch.testing.assert_close(
        run(model, pictures).last_hidden_state, run(loaded, pictures).last_hidden_state, rtol=0, atol=0
    )


@pytest.mark.parametrize("prefix", ["model.vision_tower.", "model.vision_tower.vision_tower."])
def test_the_tower_of_a_llava_uhd(prefix: str, tmp_path: Path) -> None:
    """As a model, as the folder it writes, and under the keys of the authors' release."""
    config = LlavaUHDConfig(vision_config=vit_uhd().config, text_config=Qwen2Config(**TEXT))
    whole = LlavaUHDForConditionalGeneration(config).eval()
    whole.model.vision_tower.load_state_dict(vit_uhd().state_dict())
    whole.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("model.vision_tower.", prefix): tensor for name, tensor in weights.items()}
    assert any(name.startswith(prefix) for name in renamed)
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = run(vit_uhd(), images()).last_hidden_state
    for source in (whole, tmp_path):
        output = run(from_vit(source), images()).last_hidden_state
        torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 0}, "at least one pixel"),
        ({"merger_layer_index": [4]}, "between 0 and 3"),
        ({"merger_layer_index": [1], "merging_method": "maximum"}, "content-adaptive, average, early"),
        ({"rope_layout": "spiral"}, "interleaved, hierarchical, half"),
        ({"rope_layout": "none"}, "interleaved, hierarchical, half"),
        ({"resize_method": "guess"}, "pseudo-inverse, adjoint"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(FoveateError, match=message):
        from_vit(build("kimi"), **options)


def test_siglip2_has_no_rotary_positions() -> None:
    with pytest.raises(FoveateError, match="possible are none"):
        from_vit(build("siglip2"), rope_layout="interleaved")


def test_no_norm_can_be_made_up() -> None:
    with pytest.raises(FoveateError, match="no norm after its blocks"):
        from_vit(vit_uhd(final_norm=False), final_norm=True)


def test_sources_that_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(FoveateError, match=r"Linear holds no vision tower .* MoonViT"):
        from_vit(nn.Linear(2, 2))
    with pytest.raises(FoveateError, match="neither a folder"):
        from_vit(tmp_path / "nothing")
    Qwen2ForCausalLM(Qwen2Config(**TEXT)).save_pretrained(tmp_path / "text")
    with pytest.raises(FoveateError, match="model type 'qwen2'"):
        from_vit(tmp_path / "text")


def test_incomplete_or_changed_sources_are_refused(tmp_path: Path) -> None:
    tower = tower_of(build("qwen2_vl"))
    tower.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FoveateError, match="safetensors"):
        from_vit(tmp_path)
    tower.blocks[0].attn.qkv.lora_A = nn.Linear(2, 2)
    with pytest.raises(FoveateError, match=r"blocks\.0\.attn\.qkv\.lora_A.*merge"):
        from_vit(tower)
    tower = tower_of(build("qwen2_vl"))
    del tower.blocks[2].mlp.fc1
    with pytest.raises(FoveateError, match=r"no tensor 'blocks\.2\.mlp\.fc1\.weight'"):
        from_vit(tower)
    with pytest.raises(FoveateError, match="not in memory"):
        from_vit(tower_of(build("qwen2_vl")).to("meta"))
