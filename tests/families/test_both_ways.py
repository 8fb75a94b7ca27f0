"""Image tokens that see each other in both directions: the mask of the short sequence, and everything that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.families import family_of
from tests.families.reference import answers, check_static, logits, only_kept
from tests.families.zoo import IMAGE, zoo

NAMES = ("paligemma", "paligemma2", "gemma3", "gemma4", "gemma4-e")
ROWS = (((3, 4), (2, 3)), ((4, 5),))


def may_see(name: str, image: Tensor, window: int | None) -> Tensor:
    """(P, P) who sees whom in a prompt; `image` (P,) numbers the image that a token is of, -1 for text.

    PaliGemma: everybody everybody, through windows too. Gemma 3: what came before, and the image that a token is of,
    as far as the window lets them. Gemma 4: the same, and without a window nothing but what came before; small models
    of it nothing else at all.
    """
    count = len(image)
    seen = torch.zeros(count, count, dtype=torch.bool)
    for query in range(count):
        for key in range(count):
            near = window is None or abs(query - key) < window
            if name.startswith("paligemma"):
                seen[query, key] = True
            else:
                together = image[query] >= 0 and image[query] == image[key]
                together &= name == "gemma3" or (name == "gemma4" and window is not None)
                seen[query, key] = (key <= query or together) and near
    return seen


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", ["divprune:3", "pool:4", "fastervlm:25%"])
def test_the_language_model_is_called_with_the_mask_of_what_stays(
    name: str, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS[:1])
    text: Any = family_of(model).text(family_of(model).core(model))
    seen: dict[str, Any] = {}
    forward = text.forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.update(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(text, "forward", spy)
    with foveate.compress(model, plan) as handle:
        logits(model, inputs)
        report = handle.report()
    ids = inputs["input_ids"][0]
    image = torch.full_like(ids, -1)
    stays = ids != IMAGE
    columns = (ids == IMAGE).nonzero().flatten()
    for number, part in enumerate(columns.split([own.tokens_in for own in report.images])):
        image[part] = number
        stays[part[report.images[number].selection.indices]] = True
    given = seen["attention_mask"]
    masks = given if isinstance(given, Mapping) else {"full_attention": given}
    for kind, mask in masks.items():
        window = text.config.sliding_window if kind == "sliding_attention" else None
        if mask is None:  # sdpa has a causal mask of its own
            mask = torch.ones(1, 1, int(stays.sum()), int(stays.sum()), dtype=torch.bool).tril()
        allowed = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
        assert torch.equal(allowed, may_see(name, image[stays], window)), kind


@pytest.mark.parametrize("name", NAMES)
def test_generating(name: str) -> None:
    """With every kind of cache, left padded, and after it the model is what it was."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS)
    untouched = logits(model, inputs)
    with foveate.compress(model, "divprune:25%"):
        expected = answers(model, inputs, use_cache=False)
        assert answers(model, inputs).equal(expected)
        if name != "paligemma2":  # transformers 5.23 cannot do that at all: the masks of generate break its forward
            check_static(model, inputs, name, expected)
        beams = answers(model, inputs, num_beams=2)
        assert beams.equal(answers(model, inputs, num_beams=2, use_cache=False))
    assert torch.equal(logits(model, inputs), untouched)


@pytest.mark.parametrize("name", NAMES)
def test_without_token_types_the_prompt_is_causal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the language model makes the mask of the kept embeddings by itself."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS[:1])
    del inputs["mm_token_type_ids" if name.startswith("gemma4") else "token_type_ids"]
    with foveate.compress(model, "divprune:4", positions="original") as handle:
        short = logits(model, inputs)
        report = handle.report()
    torch.testing.assert_close(short, only_kept(model, inputs, report, monkeypatch), atol=1e-5, rtol=1e-4)
