"""ViT-UHD against numbers returned by the authors' own code, see `tests/golden/vit_uhd/README.md`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from foveate import ViTUHDConfig, ViTUHDModel

GOLDEN = Path(__file__).parents[2] / "golden" / "vit_uhd"
CASES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def read_case(case: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The inputs of a case and what the authors' code returned for them."""
    values = load_file(GOLDEN / case / "io.safetensors")
    inputs = {"pixel_values": values["pixel_values"].float(), "grid_hws": values["grid_hws"]}
    return inputs, {"last_hidden_state": values["last_hidden_state"], "grid_hws": values["grid_out"]}


def load(case: str, **options) -> ViTUHDModel:
    model, report = ViTUHDModel.from_pretrained(GOLDEN / case, output_loading_info=True, **options)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def test_all_cases_are_there() -> None:
    assert len(CASES) == 7


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_the_authors_numbers(case: str, attention: str) -> None:
    model = load(case, attn_implementation=attention)
    inputs, expected = read_case(case)
    with torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(output.last_hidden_state, expected["last_hidden_state"], **TOLERANCE)
    assert torch.equal(output.grid_hws, expected["grid_hws"])


@pytest.mark.parametrize("case", CASES)
def test_each_image_alone_gives_its_part_of_the_batch(case: str) -> None:
    model = load(case)
    inputs, expected = read_case(case)
    patches = inputs["pixel_values"].split(inputs["grid_hws"].prod(1).tolist())
    tokens = expected["last_hidden_state"].split(expected["grid_hws"].prod(1).tolist())
    for image, grid, expected_tokens in zip(patches, inputs["grid_hws"], tokens, strict=True):
        with torch.no_grad():
            output = model(image, grid[None])
        torch.testing.assert_close(output.last_hidden_state, expected_tokens, **TOLERANCE)


@pytest.mark.parametrize("case", ["content-2-stages", "average-3-stages"])
def test_the_auto_classes_know_the_released_layout(case: str) -> None:
    config = AutoConfig.from_pretrained(GOLDEN / case)
    assert isinstance(config, ViTUHDConfig)
    model = AutoModel.from_pretrained(GOLDEN / case).eval()
    assert isinstance(model, ViTUHDModel)
    inputs, expected = read_case(case)
    with torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(output.last_hidden_state, expected["last_hidden_state"], **TOLERANCE)


@pytest.mark.parametrize("case", ["content-1-stage", "no-stages"])
def test_saving_in_our_layout_changes_nothing(case: str, tmp_path: Path) -> None:
    load(case).save_pretrained(tmp_path)
    model = ViTUHDModel.from_pretrained(tmp_path).eval()
    inputs, expected = read_case(case)
    with torch.no_grad():
        output = model(**inputs)
    torch.testing.assert_close(output.last_hidden_state, expected["last_hidden_state"], **TOLERANCE)


def test_an_unknown_key_is_reported(tmp_path: Path) -> None:
    """The unused `zero_init_fc` of the released checkpoints is accepted by its name, nothing else is."""
    from safetensors.torch import save_file

    weights = load_file(GOLDEN / "content-1-stage" / "model.safetensors")
    assert any("zero_init_fc" in name for name in weights)
    weights["encoder.blocks.0.surprise.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((GOLDEN / "content-1-stage" / "config.json").read_text())
    _, report = ViTUHDModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["unexpected_keys"]) == {"encoder.blocks.0.surprise.weight"}
