"""What the first decoder layer looks at, against the attention matrix of an eager model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import foveate
from foveate import FoveateError
from foveate.core.attention import Attention
from foveate.core.pre_llm import PreLLMMethod
from foveate.core.tokens import EncoderSpec, Need, Selection, VisualTokens
from foveate.runtime.first_layer_attention import queries_and_keys
from tests.families.zoo import IMAGE, zoo
from tests.refusals import refused


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
def test_attention_is_that_of_the_eager_model(name: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, [((3, 4),), ((2, 3), (4, 3))])
    text, seen = model.model.language_model, {}
    hook = text.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            matrices = model(**inputs, output_attentions=True).attentions[0]
    finally:
        model.set_attn_implementation("sdpa")
        hook.remove()
    positions = seen.get("position_ids")
    query, key, scaling = queries_and_keys(text, seen["inputs_embeds"], positions)
    for row in range(2):
        places = inputs["input_ids"][row] == IMAGE
        columns = places.nonzero().flatten()[:3]
        rows = torch.arange(len(places) - 3, len(places))
        got = Attention(query[row], key[row], scaling, inputs["attention_mask"][row] > 0).attention_received(
            rows, columns
        )
        torch.testing.assert_close(got, matrices[row][:, rows][:, :, columns].mean(dim=(0, 1)), atol=1e-6, rtol=1e-5)


def test_a_model_without_such_a_layer_is_refused() -> None:
    with pytest.raises(FoveateError, match="first-layer attention cannot be computed for a Linear"):
        queries_and_keys(torch.nn.Linear(2, 2), torch.zeros(1, 2, 2), None)


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "qwen3.5", "minicpm-v-4.6"])
def test_families_without_such_a_layer_are_refused_when_attaching(name: str) -> None:
    model = zoo()[name].model()
    with refused("needs-first-layer-attention"):
        foveate.compress(model, "relevance(weights=mapper.safetensors):50%")


@dataclass(frozen=True)
class _Asking(PreLLMMethod):
    """Keeps everything, and asks what text looks at."""

    name: ClassVar[str] = "asking"
    budget: ClassVar = "none"

    def needs(self, tower: EncoderSpec) -> tuple[Need, ...]:
        return (Need("first_layer_attention"),)

    def select(self, tokens: VisualTokens, count: int) -> Selection:
        return Selection(torch.arange(len(tokens)))


def test_an_image_without_any_text_is_refused() -> None:
    model = zoo()["llava"].model()
    inputs = zoo()["llava"].prompts(model, [((3, 4),)])
    image = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()
    alone = {name: value[:, image] for name, value in inputs.items() if name in ("input_ids", "attention_mask")}
    with foveate.compress(model, _Asking()), pytest.raises(FoveateError, match="the prompt has no text"):
        model(**inputs | alone)
