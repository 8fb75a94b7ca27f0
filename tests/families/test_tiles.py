"""Families whose images are cut into tiles: which patches a token is made of, layouts, generating, clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foveate
from foveate.core.tokens import Grid, Need
from foveate.families import ImageLayout, family_of
from tests.families.reference import HUBS, answers, eager, encode, encoder_inputs, logits, only_kept
from tests.families.zoo import VIDEO, pad, pixels, text, zoo

NAMES = ("llava-next", "llava-onevision", "internvl", "idefics3", "smolvlm")
#: Prompts with several tiles, with two images, and with one of a single tile.
ROWS = (((6, 7),), ((2, 3), (4, 5)), ((4, 4),))


def layouts(model: Any, inputs: dict[str, Any]) -> list[ImageLayout]:
    call = encoder_inputs(inputs)
    family = family_of(model)
    return family.layouts(family.core(model), "image", call, encode(model, inputs))


def shares(model: Any, inputs: dict[str, Any]) -> Tensor:
    """(tokens, patches): what every patch of a call adds to every token, as `spread` says."""
    family = family_of(model)
    core, call, output = family.core(model), encoder_inputs(inputs), encode(model, inputs)
    patches = 16 if family.name.startswith("llava") else 64
    sequences = len(output.last_hidden_state)
    return torch.cat(family.spread(core, "image", call, output, torch.eye(sequences * patches)))


@pytest.mark.parametrize("size", [(6, 7), (6, 9), (2, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_a_token_is_made_of_the_patches_that_change_it(name: str, size: tuple[int, int]) -> None:
    """The model itself is asked: a patch is changed after the last block that counts, and some tokens change."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, ((size,),))
    family, core = family_of(model), family_of(model).core(model)
    tower = family.tower(core)
    found = shares(model, inputs)
    untouched = torch.cat(list(encode(model, inputs).pooler_output))
    changed = torch.zeros_like(found, dtype=torch.bool)
    place = 0
    first = 1 if tower.has_cls else 0

    def change(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        per_sequence = hidden.shape[1] - first
        hidden[place // per_sequence, first + place % per_sequence] += torch.linspace(-3, 3, hidden.shape[-1])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = family.blocks(core)[tower.last_used].register_forward_hook(change, prepend=True)
    try:
        for place in range(found.shape[1]):
            features = torch.cat(list(encode(model, inputs).pooler_output))
            changed[:, place] = (features - untouched).abs().amax(dim=1) > 1e-6
    finally:
        hook.remove()
    assert torch.equal(changed, found > 0)
    separators = torch.cat(
        [
            torch.zeros(layout.count, dtype=torch.bool) if layout.separators is None else layout.separators
            for layout in layouts(model, inputs)
        ]
    )
    torch.testing.assert_close(found.sum(dim=1), (~separators).float())


@pytest.mark.parametrize("kind", ["received", "hub_attention", "keys", "features"])
@pytest.mark.parametrize("name", NAMES)
def test_probed_values_are_those_of_eager_attention(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, (((4, 5),),))
    family = family_of(model)
    tower = family.tower(family.core(model))
    threshold = HUBS if kind == "hub_attention" else 0.0
    layers = range(tower.num_layers)
    needs = tuple(Need(kind, layer, threshold=threshold) for layer in layers)  # ty: ignore[invalid-argument-type]
    monkeypatch.setattr("foveate.runtime.attach.needs_of", lambda *args: (needs, ()))
    with foveate.compress(model, "divprune:50%"):
        measured = encode(model, inputs).foveate_encoded.measured
    own, weights = eager(model, inputs, monkeypatch), shares(model, inputs)
    for need in needs:
        values = own[need] if own[need].ndim == 2 else own[need][:, None]
        if tower.has_cls:
            values = values.unflatten(0, (len(encode(model, inputs).last_hidden_state), -1))[:, 1:].flatten(0, 1)
        got = torch.cat([image[need] for image in measured])
        torch.testing.assert_close(got.view(len(weights), -1), weights @ values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_crops_and_separators_are_all_tokens_and_each_once(name: str) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    for layout in layouts(model, specimen.prompts(model, ROWS)):
        times = torch.zeros(layout.count, dtype=torch.int64)
        for crop in layout.crops:
            assert len(crop.index) == crop.grid.size
            times[crop.present] += 1
        if layout.separators is not None:
            times += layout.separators
        assert bool((times == 1).all())


def test_llava_next_leaves_out_padding_and_ends_rows_with_newlines() -> None:
    specimen = zoo()["llava-next"]
    model = specimen.model()
    inputs = specimen.prompts(model, (((6, 7),), ((2, 6),)))
    wide, narrow = layouts(model, inputs)
    # 84 x 98 pixels in 2 x 2 tiles: the first and last row of the raster of 8 x 8 patches are padding.
    assert wide.count == 16 + 6 * 9
    assert [(crop.kind, crop.grid) for crop in wide.crops] == [("thumbnail", (4, 4)), *[("tile", (3, 4))] * 4]
    assert [crop.box for crop in wide.crops[1:]] == [
        (0, 0, 0.5, 0.5),
        (0.5, 0, 1, 0.5),
        (0, 0.5, 0.5, 1),
        (0.5, 0.5, 1, 1),
    ]
    assert wide.separators is not None
    assert wide.separators.nonzero().flatten().tolist() == [16 + 9 * row + 8 for row in range(6)]
    assert wide.crops[4].index.tolist() == [16 + 9 * row + column for row in (3, 4, 5) for column in (4, 5, 6, 7)]
    # 28 x 84 pixels in 1 x 2 tiles: of 4 rows 2 stay.
    assert [crop.grid for crop in narrow.crops] == [(4, 4), (2, 4), (2, 4)]
    features = encode(model, inputs).pooler_output[0]
    assert torch.equal(features[wide.separators], model.model.image_newline.expand(6, -1))


def test_llava_onevision_makes_large_rasters_smaller() -> None:
    specimen = zoo()["llava-onevision"]
    model = specimen.model()
    large, first, second = layouts(model, specimen.prompts(model, (((6, 9),), ((6, 9), (2, 3)))))
    # 84 x 126 pixels in 2 x 3 tiles: 8 x 12 patches, more than two tiles may have, become 4 x 6.
    assert large.count == 16 + 4 * 7
    assert [crop.grid for crop in large.crops] == [(4, 4), *[Grid(2, 2)] * 6]
    assert large.crops[2].box == pytest.approx((1 / 3, 0, 2 / 3, 0.5))
    for layout in (first, second):  # two in a prompt: one tile each, and a newline at the end
        assert layout.separators is not None
        assert layout.separators.nonzero().flatten().tolist() == [16]
        assert [(crop.kind, crop.grid) for crop in layout.crops] == [("image", (4, 4))]


@pytest.mark.parametrize("name", NAMES)
def test_generating(name: str) -> None:
    """With every kind of cache, left padded, and after it the model is what it was."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS)
    untouched = logits(model, inputs)
    with foveate.compress(model, "vispruner:25%") as handle:
        expected = answers(model, inputs, use_cache=False)
        assert answers(model, inputs).equal(expected)
        assert answers(model, inputs, cache_implementation="static").equal(expected)
        report = handle.report()
        assert report.tokens_kept == sum(round(image.tokens_in / 4) for image in report.images)
        beams = answers(model, inputs, num_beams=2)
        assert beams.equal(answers(model, inputs, num_beams=2, use_cache=False))
    assert torch.equal(logits(model, inputs), untouched)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_the_model_given_only_what_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, (((6, 7), (2, 3)),))
    with foveate.compress(model, "divprune:25%", positions="original") as handle:
        got = logits(model, inputs)
        report = handle.report()
    torch.testing.assert_close(got, only_kept(model, inputs, report, monkeypatch), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 3])
def test_clips_of_llava_onevision(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 2 x 2 tokens, each the mean of four patches, and one newline."""
    model = zoo()["llava-onevision"].model()
    count = 4 * frames + 1
    inputs: dict[str, Any] = pad([[*text(0, 3), *[VIDEO] * count, *text(1, 4)]], "left")
    inputs["pixel_values_videos"] = pixels(5, 1, frames, 3, 56, 56)
    with foveate.compress(model, "fastervlm:50%", positions="original") as handle:
        got = logits(model, inputs)
        report = handle.report()
        (image,) = report.images
        assert answers(model, inputs).equal(answers(model, inputs, use_cache=False))
    assert (image.tokens_in, image.tokens_kept) == (count, round(count / 2))
    assert [crop.grid for crop in image.layout.crops] == [(2, 2)] * frames
    torch.testing.assert_close(got, only_kept(model, inputs, report, monkeypatch), atol=2e-5, rtol=1e-4)
    family, core, output = family_of(model), model.model, encode(model, inputs)
    (weights,) = family.spread(core, "video", encoder_inputs(inputs), output, torch.eye(16 * frames))
    expected = torch.zeros(count, 16 * frames)
    for token in range(4 * frames):
        frame, row, column = token // 4, token // 2 % 2, token % 2
        for i in range(2):
            for j in range(2):
                expected[token, 16 * frame + 4 * (2 * row + i) + 2 * column + j] = 0.25
    assert torch.equal(weights, expected)
