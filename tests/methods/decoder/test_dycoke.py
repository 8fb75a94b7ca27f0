"""The second stage of DyCoke against numbers of the authors' code, and in a model against a mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate import FoveateError, compat, compress
from foveate.methods.decoder.dycoke import DyCokeDecoder
from tests.families.zoo import zoo
from tests.methods.decoder.fabricated import deep_llava

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "dycoke_decoder.json").read_text())
STEPS = (11, 12, 13, 14)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['tokens']} {case['prune']}")
def test_equals_the_authors_code(case: dict) -> None:
    method, choice = DyCokeDecoder(case["prune"], form="code"), None
    image = slice(case["before"], case["before"] + case["tokens"])
    attention = torch.stack([torch.tensor(step["attention"]).mean(dim=0)[image] for step in case["steps"]])
    expected = [list(range(case["tokens"])) if step["kept"] is None else step["kept"] for step in case["steps"]]
    for row, kept in zip(attention, expected, strict=True):
        choice = method.choose(row[None], choice)
        assert choice.attended[0].nonzero().flatten().tolist() == kept
    assert [row.nonzero().flatten().tolist() for row in method.choose(attention, None).attended] == expected


def test_a_choice_stays_while_the_attention_does() -> None:
    attention = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.3, 0.25, 0.27, 0.1], [0.0, 0.1, 0.2, 0.7], [0.1, 0.0, 0.2, 0.7]])
    expected = [[True, True, False, False]] * 2 + [[False, False, True, True]] * 2
    method = DyCokeDecoder(prune=0.5)
    assert method.choose(attention, None).attended.tolist() == expected
    first = method.choose(attention[:1], None)
    assert method.choose(attention[1:], first).attended.tolist() == expected[1:]


def steps(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    """Logits of some tokens after a prompt, read one at a time."""
    with torch.no_grad():
        cache = compat.cache_of(model(**inputs, use_cache=True))
        mask, rows = inputs["attention_mask"], []
        for token in STEPS:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            ids = torch.full((len(mask), 1), token)
            output = model(input_ids=ids, attention_mask=mask, use_cache=True, **compat.cache_argument(cache))
            rows.append(output.logits[:, -1])
    return rows


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_equals_a_mask_in_later_layers(attention: str) -> None:
    """Prompts of other lengths, one without images; later layers see what layer 1 attends to, by its own matrix."""
    model = deep_llava(4)
    inputs = zoo()["llava"].prompts(model, (((3, 4),), ((2, 3), (4, 3)), ()))
    model.set_attn_implementation(attention)
    with compress(model, "dycoke-decoder(prune=0.5, similarity=1)@2,3"):
        found = steps(model, inputs)
    model.set_attn_implementation("eager")
    visual = inputs["input_ids"] == model.config.image_token_id
    hidden = [torch.zeros(0)]

    def measure(module: Any, args: Any, output: Any) -> None:
        weights = output[1].mean(dim=1)[:, -1]
        hidden[0] = torch.zeros_like(weights, dtype=torch.bool)
        for row, places in enumerate(visual):
            image = places.nonzero().flatten()
            worst = weights[row, image].argsort(descending=True)[len(image) // 2 :]
            hidden[0][row, image[worst]] = True

    def mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs["hidden_states"].shape[1] > 1:
            return None
        lowest = torch.finfo(torch.float32).min
        before = kwargs["attention_mask"]
        before = torch.zeros(len(visual), 1, 1, hidden[0].shape[1]) if before is None else before
        return args, kwargs | {"attention_mask": before.masked_fill(hidden[0][:, None, None], lowest)}

    layers = model.model.language_model.layers
    layers[1].self_attn.register_forward_hook(measure)
    for layer in layers[2:]:
        layer.self_attn.register_forward_pre_hook(mask, with_kwargs=True)
    expected = steps(model, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_what_is_generated_ends_where_it_begins() -> None:
    """Nothing is left out of a prompt; of generated tokens it is, and not where the share is zero."""
    model = deep_llava(4)
    inputs = zoo()["llava"].prompts(model, (((3, 4),), ((2, 3), (4, 3))))
    plain = steps(model, inputs)
    with compress(model, "dycoke-decoder(prune=0)"):
        assert all(torch.equal(*pair) for pair in zip(steps(model, inputs), plain, strict=True))
    with compress(model, "dycoke-decoder"):
        assert not any(torch.allclose(*pair) for pair in zip(steps(model, inputs), plain, strict=True))
    with pytest.raises(FoveateError, match="acts in layer 0"):
        compress(model, "dycoke-decoder@0")


def test_arguments_that_mean_nothing() -> None:
    for arguments, message in [
        ({"prune": 1.5}, "prune is a share"),
        ({"similarity": 2}, "similarity is a cosine"),
        ({"form": "x"}, "form is"),
    ]:
        with pytest.raises(FoveateError, match=f"dycoke-decoder: {message}"):
            DyCokeDecoder(**arguments)
