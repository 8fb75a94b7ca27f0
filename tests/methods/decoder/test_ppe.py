"""PPE's cascade: clusters against a loop, and what layers are rotated by against angles worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import LayerTokens
from foveate.core.tokens import Crop, Grid, Selection
from foveate.methods.decoder.ppe import PPEDecoder
from foveate.methods.pre_llm.ppe import cluster_members, rotary_members
from foveate.methods.shared.clustering import density_peaks
from foveate.testing.layer_tokens import changed, layer_tokens
from tests.families.zoo import IMAGE, zoo


@pytest.mark.parametrize("count", [1, 5, 11])
def test_every_frame_is_clustered_by_itself(count: int) -> None:
    crops = tuple(Crop(torch.arange(6) + 6 * n, Grid(2, 3), kind="frame") for n in range(2))
    tokens = changed(layer_tokens(12, seed=count), layout=lambda: crops)
    selection = PPEDecoder(members=4)(tokens, count)
    selection.check(12)
    assert selection.positions is not None and len(selection) == count
    shares = {1: [1, 0], 5: [3, 2], 11: [6, 5]}[count]
    rows: dict[int, tuple[Tensor, list[int]]] = {}
    for number, share in enumerate(shares):
        if share:
            x = tokens.features[6 * number : 6 * number + 6]
            _, labels = density_peaks(x, share, 5)
            carried = cluster_members(labels, share, 4) + 6 * number
            for own in range(share):
                rows[int(carried[own, 0])] = (x[labels == own].mean(dim=0), carried[own].tolist())
    assert selection.indices.tolist() == sorted(rows)
    for row, place in enumerate(sorted(rows)):
        assert selection.features is not None
        torch.testing.assert_close(selection.features[row], rows[place][0])
        assert selection.positions[row].tolist() == rows[place][1]


def test_a_token_that_answers_keeps_its_position() -> None:
    tokens = layer_tokens(12, after=0)
    selection = PPEDecoder(members=3)(tokens, 5)
    selection.check(12)
    assert selection.positions is not None and selection.features is not None
    assert selection.positions[-1].tolist() == [11] * 3 and torch.equal(selection.features[-1], tokens.features[-1])
    assert int(selection.positions[:-1].max()) < 11
    assert torch.equal(selection.positions[:, 0], selection.indices)


def rotations(model: Any, inputs: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """cos and sin that every layer is given."""
    rotary: dict[int, Any] = {}
    hooks = [
        layer.register_forward_hook(
            lambda module, args, kwargs, output, number=number: rotary.update({number: kwargs["position_embeddings"]}),
            with_kwargs=True,
        )
        for number, layer in enumerate(model.model.language_model.layers)
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return [rotary[number] for number in sorted(rotary)]


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("before", ["", "ppe(members=2):8 + "])
def test_layers_are_rotated_by_the_members(name: str, before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one position each to K, and from K to the K of the token that a row stands at."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, [((4, 4),)])
    made: list[Selection] = []
    select = PPEDecoder.select

    def watched(self: PPEDecoder, tokens: LayerTokens, count: int) -> Selection:
        made.append(select(self, tokens, count))
        return made[-1]

    monkeypatch.setattr(PPEDecoder, "select", watched)
    with foveate.compress(model, f"{before}ppe-decoder(members=2):4@1"):
        first, second = rotations(model, inputs)[:2]
    (selection,) = made
    assert selection.positions is not None
    config = model.model.language_model.config.rope_parameters
    sections = tuple(config.get("mrope_section") or (first[0].shape[-1] // 2,))
    members = rotary_members(sections, 2, interleaved=bool(config.get("mrope_interleaved"))).tolist() * 2
    start = int((inputs["input_ids"][0] == IMAGE).nonzero()[0])
    for long, short in zip(first, second, strict=True):
        assert len(short[0]) - 4 == len(long[0]) - (8 if before else 16)
        for row in range(4):
            carried = selection.positions[row].tolist()
            if before:
                carried = [int(selection.indices[row])] * 2
            expected = [float(long[0, start + carried[m], channel]) for channel, m in enumerate(members)]
            assert short[0, start + row].tolist() == expected


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
def test_a_pass_of_the_cascade_is_that_of_the_members(name: str) -> None:
    """With K = 1 a row has the position of its first member, as after any other method that keeps that token."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, [((4, 4),)])
    with foveate.compress(model, "ppe-decoder(members=1):4@1") as handle:
        second = rotations(model, inputs)[1]
        kept = handle.report().images[0].layers[0].indices
    uncompressed = rotations(model, inputs)[1]
    image = (inputs["input_ids"][0] == IMAGE).nonzero().flatten()[:16]
    stays = [n for n in range(inputs["input_ids"].shape[1]) if n not in image.tolist() or n in image[kept].tolist()]
    for got, expected in zip(second, uncompressed, strict=True):
        assert torch.equal(got[0], expected[0][stays])


@pytest.mark.parametrize("plan", ["ppe-decoder:50%@1", "ppe:50% + ppe-decoder:50%@1"])
@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "qwen3-vl", "glm-4v"])
def test_generating_with_a_cache_is_generating_without(name: str, plan: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, [((4, 4),), ((2, 3), (4, 3))])
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    options["bad_words_ids"] = [[token] for token in range(100, 120)]
    with foveate.compress(model, plan):
        written = [model.generate(**inputs, **options, use_cache=cache).tolist() for cache in (True, False)]
    assert written[0] == written[1]


def test_the_layers_of_the_paper_and_bad_arguments() -> None:
    assert PPEDecoder().layers(36) == (11, 23, 35)
    assert PPEDecoder().layers(2) == (1,)
    for wrong in ({"members": 0}, {"neighbours": 0}):
        with pytest.raises(FoveateError, match="ppe-decoder"):
            PPEDecoder(**wrong)
    specimen = zoo()["llava"]
    with (
        foveate.compress(specimen.model(), "ppe-decoder:4@1", positions="contiguous"),
        pytest.raises(FoveateError, match="several original positions"),
    ):
        specimen.model()(**specimen.prompts(specimen.model(), [((4, 4),)]))
