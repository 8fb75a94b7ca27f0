"""What is assumed of the installed version of transformers holds, and what it lacks is said."""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import DynamicCache, LlamaConfig, LlamaModel
from transformers.cache_utils import DynamicSlidingWindowLayer

import foveate
from foveate import FoveateError, compat
from tests.families.zoo import zoo

UNKNOWN = "hands the cache over in a way that foveate does not know"


def llama(**changed: Any) -> LlamaModel:
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    return LlamaModel(LlamaConfig(**sizes, num_attention_heads=2, **changed)).eval()


def test_the_flag_is_what_models_and_outputs_of_this_version_do() -> None:
    assert (compat.CACHE == "cache") is compat.HAS_CACHE_ARGUMENT
    assert compat.CACHE in inspect.signature(LlamaModel.forward).parameters
    cache = DynamicCache()
    output = llama()(input_ids=torch.tensor([[1, 2]]), **compat.cache_argument(cache))
    assert compat.CACHE in output.keys()  # noqa: SIM118 - what an output says it holds is meant
    assert compat.cache_of(output) is cache
    assert cache.get_seq_length() == 2


def test_a_cache_is_found_by_any_of_its_names() -> None:
    cache = DynamicCache()
    for name in compat.CACHE_NAMES:
        assert compat.cache_in({name: cache}) is cache
        assert compat.with_cache({name: None, "x": 1}, cache) == {compat.CACHE: cache, "x": 1}
    assert compat.cache_in({"cache": None}) is None


def test_the_cache_of_a_call_is_made_where_the_model_would_make_one() -> None:
    text = llama()
    given = DynamicCache()
    assert compat.cache_for_call(text, compat.cache_argument(given)) is given
    assert isinstance(compat.cache_for_call(text, compat.cache_argument(None)), DynamicCache)  # the config says so
    assert compat.cache_for_call(text, {**compat.cache_argument(None), "use_cache": False}) is None
    assert compat.cache_for_call(llama(use_cache=False), compat.cache_argument(None)) is None
    sliding = llama(layer_types=["sliding_attention"], sliding_window=4)
    made = compat.cache_for_call(sliding, compat.cache_argument(None))
    assert isinstance(made.layers[0], DynamicSlidingWindowLayer)
    with pytest.raises(FoveateError, match=UNKNOWN):
        compat.cache_for_call(text, {"inputs_embeds": None, "use_cache": True})


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
@pytest.mark.parametrize("plan", ["divprune:3", "fastv:3"])
def test_a_version_that_names_the_cache_otherwise_is_refused(
    name: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = zoo()[name]
    model = spec.model()
    inputs = spec.prompts(model, (((3, 4),),))
    with foveate.compress(model, plan), torch.no_grad():
        monkeypatch.setattr(compat, "CACHE_NAMES", ("memory",))
        monkeypatch.setattr(compat, "CACHE", "memory")
        with pytest.raises(FoveateError, match=UNKNOWN):
            model(**inputs, use_cache=True)
        model(**inputs, use_cache=False)


def test_an_output_without_the_cache_is_refused() -> None:
    output = llama()(input_ids=torch.tensor([[1]]), use_cache=True)
    compat.check_cache_returned(output, compat.cache_of(output))
    with pytest.raises(FoveateError, match=UNKNOWN):
        compat.check_cache_returned(output, DynamicCache())


def test_own_models_take_the_cache_by_all_names() -> None:
    @compat.takes_cache
    def forward(cache: Any = None) -> Any:
        return cache

    one, other = DynamicCache(), DynamicCache()
    for name in compat.CACHE_NAMES:
        assert forward(**{name: one}) is one
    assert forward(cache=one, past_key_values=None) is one  # ty: ignore[unknown-argument]
    with pytest.raises(FoveateError, match="same argument"):
        forward(cache=one, past_key_values=other)  # ty: ignore[unknown-argument]


def test_the_class_of_a_cache_comes_back() -> None:
    class Mixin:
        pass

    cache = DynamicCache()
    assert compat.is_plain_dynamic_cache(cache)
    compat.mix_into(cache, Mixin)
    compat.mix_into(cache, Mixin)
    assert isinstance(cache, Mixin)
    assert isinstance(copy.deepcopy(cache), Mixin)
    assert not compat.is_plain_dynamic_cache(cache)
    compat.unmix(cache, Mixin)
    compat.unmix(cache, Mixin)
    assert type(cache) is DynamicCache


def test_a_config_names_another_attention_for_one_module() -> None:
    config = zoo()["llava"].model().config
    other = compat.config_with_attention(config, "eager")
    assert compat.attention_name(other) == "eager"
    assert compat.attention_name(config) == "sdpa"
    assert compat.attention_name(config.text_config) == "sdpa"

    class Fixed:
        _attn_implementation = "sdpa"

    with pytest.raises(FoveateError, match="names attention functions in a way"):
        compat.set_attention_name(Fixed(), "eager")


def test_checkpointing_of_calls_is_off_in_its_context_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = llama().layers
    layers[0].gradient_checkpointing = True
    for calls in (False, True):
        monkeypatch.setattr(compat, "CHECKPOINTS_CALLS", calls)
        with compat.without_checkpointed_calls(layers):
            assert layers[0].gradient_checkpointing is not calls
        assert layers[0].gradient_checkpointing is True


def test_what_a_version_lacks_is_a_matter_of_its_number() -> None:
    version = Version(compat.transformers.__version__)
    assert compat.HAS_LOGITS_PER_ROW is (version >= Version("5.21"))
    assert compat.CHECKPOINTS_CALLS is (version < Version("5.23"))
    assert compat.CROPS_STATIC_CACHES is (version >= Version("5.24"))


def test_the_private_names_exist() -> None:
    text = zoo()["qwen3-vl"].model().model.language_model
    assert callable(getattr(text, compat.DEEPSTACK))


@pytest.mark.parametrize(
    ("version", "warned"),
    [("5.19.0", False), ("5.24.9", False), ("5.25.0", True), ("5.25.0.dev0", True), ("6.0.0", True), ("5.18.0", True)],
)
def test_an_untested_version_is_said_once_with_the_tested_range(version, warned, monkeypatch) -> None:
    monkeypatch.setattr(
        compat, "requires", lambda _: ["torch>=2.11", "transformers<5.25,>=5.19", "av>=14; extra == 'x'"]
    )
    monkeypatch.setattr(compat.transformers, "__version__", version)
    compat.warn_if_untested.cache_clear()
    specimen = zoo()["llava"]
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                with foveate.compress(specimen.model(), "divprune:3"):
                    pass
        told = [str(one.message) for one in said if "foveate is tested with" in str(one.message)]
        assert len(told) == warned
        if warned:
            assert f"transformers >=5.19, <5.25, and this is {version}" in told[0]
            assert said[0].filename == __file__
    finally:
        compat.warn_if_untested.cache_clear()


def test_an_installed_foveate_knows_the_versions_that_it_is_tested_with() -> None:
    assert compat.tested_versions("transformers").contains(compat.transformers.__version__)


def test_echoing_pixels_is_refused_where_transformers_lacks_what_it_extends(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni

    from foveate.models import echoing_pixels

    assert hasattr(modeling_qwen2_5_omni, "Qwen2_5OmniThinkerModel") is compat.HAS_OMNI_THINKER_MODEL
    monkeypatch.setattr(compat, "HAS_OMNI_THINKER_MODEL", False)
    echoing_pixels.register()  # as `import foveate` does, which works with every version
    with pytest.raises(FoveateError, match=r"EchoingPixels needs transformers 5\.21 or newer, and this is \d"):
        _ = echoing_pixels.EchoingPixelsModel
