"""What holds for every encoder: it is tested here as soon as it is registered and has a line in `small_encoders`."""

from __future__ import annotations

import copy
import inspect
from contextlib import suppress
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders import Encoder, EncoderConfig, all_encoders, encoder_named, register_encoder
from foveate.models.encoders.registry import unregister_encoder
from tests.checkpointing import checkpoint
from tests.models.encoders.small_encoders import SIDE, images, small_config, small_encoder


@pytest.fixture(params=sorted(all_encoders()))
def name(request) -> str:
    return request.param


def test_identity(name):
    cls: Any = encoder_named(name)
    assert cls.config_class.model_type == name
    assert cls.title and (cls.paper == "" or cls.paper.startswith("arXiv "))
    assert inspect.getdoc(cls) and inspect.getdoc(cls.config_class)


def test_the_defaults_are_a_possible_configuration(name):
    config: Any = encoder_named(name).config_class()
    assert config.output_grid(config.image_size, config.image_size).size > 0


def grid_or_none(model: Encoder, height: int, width: int) -> Grid | None:
    with suppress(FoveateError):
        return model.config.output_grid(height, width)
    return None


def test_sizes_without_weights_equal_real_counts(name):
    model = small_encoder(name)
    sizes = [(SIDE, SIDE), (2 * SIDE, SIDE), (SIDE, 2 * SIDE), (SIDE // 2, SIDE), (SIDE + 8, SIDE), (SIDE + 1, SIDE)]
    readable = 0
    for height, width in sizes:
        pixels = torch.randn(1, 3, height, width)
        grid = grid_or_none(model, height, width)
        if grid is None:
            with pytest.raises(FoveateError, match=name) as error:
                model(pixels)
            assert str(error.value).endswith(".") and ". " not in str(error.value)
            continue
        with torch.no_grad():
            output = model(pixels)
        assert output.last_hidden_state.shape == (1, grid.size, model.config.hidden_size)
        readable += 1
    assert readable >= 1
    with pytest.raises(FoveateError, match=f"{name} needs images whose sides are multiples"):
        model.config.output_grid(SIDE + 1, SIDE)


def test_hidden_states_are_those_of_every_block_and_end_in_the_output(name):
    model = small_encoder(name)
    output = model(images(), output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    assert output.hidden_states[-1] is output.last_hidden_state
    assert all(state.ndim == 3 and len(state) == 2 for state in output.hidden_states)
    assert model(images()).hidden_states is None
    assert torch.equal(model(images(), return_dict=False)[0], output.last_hidden_state)


def test_saving_and_loading_changes_nothing(name, tmp_path):
    model = small_encoder(name)
    model.save_pretrained(tmp_path)
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(model)
    assert not any(info.values())
    assert AutoConfig.from_pretrained(tmp_path).output_grid(SIDE, SIDE) == model.config.output_grid(SIDE, SIDE)
    assert torch.equal(again.eval()(images()).last_hidden_state, model(images()).last_hidden_state)


def test_missing_weights_are_initialized_and_loaded_ones_kept(name, tmp_path):
    """Initializations that do not go through `transformers.initialization` would overwrite loaded weights."""
    model = small_encoder(name)
    state = model.state_dict()
    for value in state.values():
        value.fill_(0.5 if value.is_floating_point() else 3)
    missing = next(iter(dict(model.named_parameters())))
    model.save_pretrained(tmp_path, state_dict={key: value for key, value in state.items() if key != missing})
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {missing}
    for key, value in again.state_dict().items():
        assert bool((value == (0.5 if value.is_floating_point() else 3)).all()) == (key != missing), key
        assert bool(value.isfinite().all())


def test_every_item_of_a_batch_alone_equals_the_batch(name):
    model, pixels = small_encoder(name), images(3)
    with torch.no_grad():
        together = model(pixels).last_hidden_state
        for item in range(3):
            alone = model(pixels[item : item + 1]).last_hidden_state[0]
            torch.testing.assert_close(alone, together[item], atol=1e-5, rtol=1e-4)


def gradients(model: Encoder, checkpointing: bool) -> dict[str, torch.Tensor | None]:
    """Gradients of every parameter in training, of a random projection of the output."""
    model = copy.deepcopy(model).train()
    if checkpointing:
        checkpoint(model)
        assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    torch.manual_seed(2)
    loss = training_output(model)
    loss.backward()
    return {key: parameter.grad for key, parameter in model.named_parameters()}


def training_output(model: Encoder) -> torch.Tensor:
    """A random projection of all that losses can read of the output."""
    options = {"frame_counts": [4]} if "frame_counts" in model.config.clip_options else {}
    output = model(images(4), output_hidden_states=True, **options)
    generator = torch.Generator().manual_seed(3)
    values = [value for key, value in output.items() if key != "hidden_states"]
    read = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return sum(((value * torch.randn(value.shape, generator=generator)).mean() for value in read), torch.zeros(()))


def test_gradients_reach_every_parameter_with_and_without_checkpointing(name):
    model = small_encoder(name)
    plain, checkpointed = gradients(model, False), gradients(model, True)
    for key, gradient in plain.items():
        assert gradient is not None and float(gradient.abs().sum()) > 0, key
        torch.testing.assert_close(checkpointed[key], gradient, atol=1e-6, rtol=1e-4)


def test_sdpa_equals_eager(name):
    model = small_encoder(name)
    with torch.no_grad():
        fast = model(images()).last_hidden_state
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(images()).last_hidden_state, fast, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision(name, dtype):
    model = small_encoder(name, initializer_range=0.05)
    with torch.no_grad():
        expected = model(images()).last_hidden_state
        output = model.to(dtype)(images()).last_hidden_state
    assert output.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float64 else 0.1 * float(expected.abs().max())
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=0.1)


def test_bad_values_and_images_end_in_one_sentence(name):
    for field in ("hidden_size", "num_hidden_layers", "patch_size", "image_size", "num_channels"):
        for value in (0, -1, 1.5):
            with pytest.raises(FoveateError, match=f"{field} of the encoder {name} must be"):
                small_config(name, **{field: value})
    model = small_encoder(name)
    for wrong in (torch.randn(3, SIDE, SIDE), torch.randn(1, 4, SIDE, SIDE), torch.randn(1, 3, SIDE, SIDE, 1)):
        with pytest.raises(FoveateError, match=f"the encoder {name} reads images"):
            model(wrong)


class MineConfig(EncoderConfig):
    """Configuration of an encoder of another package."""

    model_type = "mine"


def test_names_and_registration():
    assert list(all_encoders()) == sorted(all_encoders())
    with pytest.raises(FoveateError, match="there is no encoder 'mine'; possible are .*lookupvit"):
        encoder_named("mine")

    class Abstract(Encoder):
        config_class = MineConfig
        title = "Mine"

    class Mine(Abstract):
        config_class = MineConfig

        def encode(self, pixel_values, grid, hidden_states, **options):
            raise AssertionError

    class Untitled(Encoder):
        config_class = MineConfig

        def encode(self, pixel_values, grid, hidden_states, **options):
            raise AssertionError

    class Taken(Mine):
        config_class = encoder_named("lookupvit").config_class

    class Unconfigured(Encoder):
        title = "Mine"

        def encode(self, pixel_values, grid, hidden_states, **options):
            raise AssertionError

    for wrong, message in (
        (torch.nn.Linear, "is no encoder"),
        (Abstract, "lacks encode"),
        (Untitled, "needs a title"),
        (Unconfigured, "needs a config_class"),
        (Taken, "'lookupvit' is taken"),
    ):
        with pytest.raises(FoveateError, match=message):
            register_encoder(wrong)
    assert register_encoder(Mine) is Mine
    try:
        assert encoder_named("mine") is Mine
        assert isinstance(AutoConfig.for_model("mine"), MineConfig)
    finally:
        unregister_encoder("mine")
    with pytest.raises(FoveateError, match="no encoder 'mine' was registered"):
        unregister_encoder("mine")
