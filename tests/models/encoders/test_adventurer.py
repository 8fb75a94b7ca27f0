"""Adventurer: the scan against the recurrence, the mixer against transformers, and the order of tokens."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageClassification, Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as ReferenceMixer

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.adventurer import (
    AdventurerConfig,
    AdventurerForImageClassification,
    AdventurerModel,
    convert_released_state,
)
from foveate.models.encoders.adventurer.modeling import AdventurerBlock, Mamba2Mixer
from foveate.models.encoders.adventurer.scan import SCANS, chunked_scan
from tests.models.encoders.operations import built_without_weights, multiplications
from tests.models.encoders.released_adventurer import FIELDS, pixels, weights
from tests.models.encoders.small_encoders import SIDE, images, small_config, small_encoder

(GOLDEN,) = json.loads((Path(__file__).parents[2] / "golden" / "adventurer.json").read_text(encoding="utf-8"))["cases"]


def inputs(count: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Inputs of a scan of two sequences with 3 heads of 5 channels and a state of 4; decays from strong to weak."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, count, 3, 5), "dt": (2, count, 3), "b": (2, count, 4), "c": (2, count, 4)}
    values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    values["dt"] = F.softplus(values["dt"])
    return values | {"a": -torch.tensor([0.05, 1.0, 16.0], dtype=dtype)}


def recurrence(x, dt, a, b, c):
    """The scan, token by token and head by head."""
    outputs = torch.zeros_like(x)
    for item in range(len(x)):
        for head in range(x.shape[2]):
            state = x.new_zeros(b.shape[-1], x.shape[-1])
            for t in range(x.shape[1]):
                decay = torch.exp(dt[item, t, head] * a[head])
                state = decay * state + dt[item, t, head] * torch.outer(b[item, t], x[item, t, head])
                outputs[item, t, head] = c[item, t] @ state
    return outputs


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 8, 64])
def test_the_scan_equals_the_recurrence(chunk_size):
    values = inputs(21, torch.float64)
    torch.testing.assert_close(chunked_scan(**values, chunk_size=chunk_size), recurrence(**values))


def test_gradients_of_the_scan_are_those_of_the_recurrence():
    plain, chunked = inputs(11, torch.float64), inputs(11, torch.float64)
    for values in (plain, chunked):
        for value in values.values():
            value.requires_grad_()
    recurrence(**plain).pow(2).sum().backward()
    chunked_scan(**chunked, chunk_size=4).pow(2).sum().backward()
    for name, value in plain.items():
        torch.testing.assert_close(chunked[name].grad, value.grad, msg=name)


def test_strong_decay_over_long_chunks_is_finite():
    """Above the diagonal of a chunk, exp of the difference of decays would overflow."""
    values = inputs(256)
    values["dt"] = values["dt"] + 20
    values["x"].requires_grad_()
    output = chunked_scan(**values, chunk_size=256)
    output.sum().backward()
    assert bool(output.isfinite().all() and values["x"].grad.isfinite().all())


@pytest.mark.skipif(
    importlib.util.find_spec("mamba_ssm") is None or not torch.cuda.is_available(), reason="needs mamba_ssm and a GPU"
)
def test_the_kernel_equals_the_scan():
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 300, 2, 64), "dt": (2, 300, 2), "b": (2, 300, 64), "c": (2, 300, 64)}
    values = {name: torch.randn(shape, generator=generator).cuda() for name, shape in shapes.items()}
    values |= {"dt": F.softplus(values["dt"] - 3), "a": -torch.tensor([1.0, 8.0]).cuda()}
    expected = chunked_scan(**values, chunk_size=128)
    torch.testing.assert_close(SCANS["mamba_ssm"](**values, chunk_size=128), expected, atol=2e-2, rtol=2e-2)


def test_the_kernel_is_an_explicit_choice_and_refuses_what_it_cannot_run():
    with pytest.raises(FoveateError, match=r"scan='mamba_ssm' of adventurer (needs the package|runs on a GPU only)"):
        small_encoder("adventurer", scan="mamba_ssm")(images())


def test_the_mixer_equals_that_of_transformers():
    config = small_config("adventurer")
    torch.manual_seed(0)
    reference = ReferenceMixer(
        Mamba2Config(
            hidden_size=24,
            state_size=6,
            head_dim=16,
            num_heads=3,
            n_groups=1,
            conv_kernel=4,
            chunk_size=8,
            num_hidden_layers=1,
        ),
        0,
    ).eval()
    mixer = Mamba2Mixer(config)
    mixer.load_state_dict(reference.state_dict())
    x = torch.randn(2, 37, 24)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), reference(x), atol=1e-6, rtol=1e-4)


def test_equals_the_authors_code():
    config = AdventurerConfig(**FIELDS)
    classifier = AdventurerForImageClassification(config).eval()
    classifier.load_state_dict(convert_released_state(weights(), config))
    model = classifier.encoder
    with torch.no_grad():
        output, logits = model(pixels()), classifier(pixels()).logits
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(output.prefix_tokens.flatten(), torch.tensor(GOLDEN["cls"]), **close)
    torch.testing.assert_close(logits.flatten(), torch.tensor(GOLDEN["logits"]), **close)
    tokens = output.last_hidden_state[:, ::5, ::4]
    torch.testing.assert_close(tokens.flatten(), torch.tensor(GOLDEN["tokens"]), **close)
    # The alternating pairs of the description are another network on these weights.
    other = AdventurerModel(AdventurerConfig(**FIELDS | {"flip": "pairs"})).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert float((other(pixels()).prefix_tokens - output.prefix_tokens).abs().max()) > 0.1


def test_a_classifier_is_saved_loaded_and_trained(tmp_path):
    torch.manual_seed(0)
    model = AdventurerForImageClassification(small_config("adventurer", num_labels=5)).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(again) is AdventurerForImageClassification
    output = again(images(), labels=torch.tensor([0, 3]))
    assert torch.equal(output.logits, model(images()).logits)
    torch.testing.assert_close(output.loss, -output.logits.log_softmax(-1)[[0, 1], [0, 3]].mean())
    output.loss.backward()
    assert all(bool(parameter.grad.any()) for parameter in again.parameters())


def test_weights_of_other_networks_are_refused():
    config = AdventurerConfig(**FIELDS)
    with pytest.raises(FoveateError, match=r"'blocks.0.norm1' is no weight of Adventurer"):
        convert_released_state({"blocks.0.norm1": torch.zeros(1)}, config)
    state = {"cls_token": torch.zeros(1, 1, 16), "pos_embed": torch.zeros(1, 10, 16)}
    with pytest.raises(FoveateError, match="positions of 9 patches, and the configuration 16"):
        convert_released_state(state, config)
    with pytest.raises(FoveateError, match="need flip='released'"):
        convert_released_state(weights(), AdventurerConfig(**FIELDS | {"flip": "pairs"}))


def test_flipped_blocks():
    flipped = {
        flip: [block for block in range(12) if AdventurerConfig(flip=flip).flipped(block)]
        for flip in ("pairs", "released")
    }
    assert flipped == {"pairs": [2, 3, 6, 7, 10, 11], "released": [2, 3]}


def block(flip: bool) -> AdventurerBlock:
    model = small_encoder("adventurer", flip="pairs")
    module: Any = model.blocks[2 if flip else 0]
    assert module.flip is flip
    return module


def test_a_flipped_block_is_the_block_on_reversed_patches():
    module, x = block(flip=True), torch.randn(2, 10, 24)
    reverse = [*range(8, -1, -1), 9]
    with torch.no_grad():
        output = module(x)
        module.flip = False
        torch.testing.assert_close(output[:, reverse], module(x[:, reverse]))


@pytest.mark.parametrize("flip", [False, True])
def test_a_block_is_causal_but_for_the_mean_of_all_tokens(flip):
    """Two patches are changed so that the mean of the normalized tokens stays: only later tokens notice."""
    module, x = block(flip), torch.randn(1, 10, 24)
    changed = x.clone()
    changed[:, [4, 5]] = x[:, [5, 4]]
    with torch.no_grad():
        difference = (module(changed) - module(x)).abs().amax((0, 2))
        moved = changed.clone()
        moved[:, 4] += 1
        everywhere = (module(moved) - module(x)).abs().amax((0, 2))
    before = [6, 7, 8] if flip else [0, 1, 2, 3]
    assert float(difference[before].max()) < 1e-5
    assert float(difference[[index for index in range(10) if index not in before]].min()) > 1e-4
    assert float(everywhere.min()) > 1e-5


def test_the_mixer_reads_the_mean_first_and_its_output_there_is_dropped():
    module, x = block(flip=False), torch.randn(2, 10, 24)
    with torch.no_grad():
        u = module.norm1(x)
        mixed = module.mixer(torch.cat([u.sum(1, keepdim=True) / 10, u], dim=1))
        y = x + mixed[:, 1:]
        gate, up = module.mlp.gate_proj(module.norm2(y)), module.mlp.up_proj(module.norm2(y))
        torch.testing.assert_close(module(x), y + module.mlp.down_proj(gate * gate.sigmoid() * up))


def test_initial_weights_of_the_mixer_are_those_of_mamba():
    mixer: Any = AdventurerModel(AdventurerConfig.of_size("tiny", num_hidden_layers=1)).blocks[0].mixer
    decay, step = mixer.A_log.detach().exp(), F.softplus(mixer.dt_bias.detach())
    assert 1 <= float(decay.min()) < float(decay.max()) <= 16
    assert 0.99e-3 <= float(step.min()) < float(step.max()) <= 0.101
    assert 0.4 < float(mixer.conv1d.weight.detach().abs().max()) <= 0.5
    assert bool((mixer.D == 1).all() and (mixer.norm.weight == 1).all())


@pytest.mark.parametrize(("size", "millions"), [("tiny", 12), ("small", 44), ("base", 99)])
def test_parameters_of_the_papers_sizes(size, millions):
    """Millions, with a classifier of 1000 classes."""
    config = AdventurerConfig.of_size(size)
    model = built_without_weights(lambda: AdventurerModel(config))
    count = sum(parameter.numel() for parameter in model.parameters()) + 1001 * config.hidden_size
    assert round(count / 1e6) == millions


def test_tokens_by_patch_size_and_a_cost_that_is_linear_in_them():
    counts = [AdventurerConfig(patch_size=side).output_grid(224, 224).size for side in (16, 8, 4, 2, 1)]
    assert counts == [196, 784, 3136, 12544, 50176]
    model = built_without_weights(
        lambda: AdventurerModel(small_config("adventurer", patch_size=16, num_hidden_layers=1, chunk_size=1))
    )
    one, two, three = (multiplications(model, SIDE, count * SIDE) for count in (1, 2, 3))
    assert three - two == two - one > 0


@pytest.mark.slow
def test_an_image_is_50176_tokens_however_they_are_chunked():
    model = small_encoder("adventurer", image_size=224, patch_size=1, num_hidden_layers=1, chunk_size=128)
    other = small_encoder("adventurer", image_size=224, patch_size=1, num_hidden_layers=1, chunk_size=500)
    with torch.inference_mode():
        output, expected = (encoder(images(1, side=224)) for encoder in (model, other))
    assert output.last_hidden_state.shape == (1, 50_176, 24)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(output.prefix_tokens, expected.prefix_tokens, atol=1e-4, rtol=1e-3)


def test_half_the_patch_and_half_the_image_are_as_many_tokens():
    assert AdventurerConfig(patch_size=8).output_grid(64, 64) == AdventurerConfig(patch_size=16).output_grid(128, 128)


def test_positions_are_resized_bicubically():
    model = small_encoder("adventurer")
    with torch.no_grad():
        state = model(images(side=96), output_hidden_states=True).hidden_states[0]
        positions = F.interpolate(model.positions.weight, (12, 12), mode="bicubic", align_corners=False)
        expected = (model.patches(images(side=96)) + positions).flatten(2).transpose(1, 2)
    torch.testing.assert_close(state, expected)
    assert model.config.output_grid(96, 96) == Grid(12, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 20}, "heads of 20 channels do not divide the 48 channels of adventurer's mixer"),
        ({"state_size": 0}, "state_size of the encoder adventurer must be a whole number from 1 on"),
        ({"mlp_ratio": 0.0}, "mlp_ratio of adventurer must give at least one hidden channel"),
        ({"flip": "never"}, "flip of adventurer must be pairs or released, not 'never'"),
        ({"scan": "cuda"}, "scan of adventurer must be torch or mamba_ssm, not 'cuda'"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("adventurer", **changes)


def test_unknown_sizes():
    with pytest.raises(FoveateError, match="no Adventurer of size 'huge'; possible are tiny, small, base"):
        AdventurerConfig.of_size("huge")
