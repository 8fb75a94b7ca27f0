"""What is special about single families: separators in the prompt, planes, linear states, modes, sizes."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate import compat
from foveate.families import family_of
from tests.families.reference import answers, check_static, encode, encoder_inputs, logits, only_kept
from tests.families.zoo import zoo
from tests.families.zoo.mistral3 import BREAK

ROWS = (((3, 4), (2, 3)), ((4, 5),))
NAMES = (
    "qwen2-vl",
    "qwen2.5-vl",
    "qwen3-vl",
    "qwen3.5",
    "glm-4v",
    "glm-4.6v",
    "mistral3",
    "gemma4",
    "gemma4-e",
    "kimi-k2.5",
    "minicpm-v-4.6",
    "llava-uhd",
    "llava-uhd-windows",
)


@pytest.mark.parametrize("name", NAMES)
def test_generating(name: str) -> None:
    """With every kind of cache, left padded, and after it the model is what it was."""
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS)
    untouched = logits(model, inputs)
    with foveate.compress(model, "fastervlm:25%") as handle:
        expected = answers(model, inputs, use_cache=False)
        assert answers(model, inputs).equal(expected)
        check_static(model, inputs, name, expected)
        assert handle.report().tokens_kept == 3 + 2 + 5  # of 12, 6 and 20
        if name.startswith("glm"):  # transformers 5.23 hands the images of a prompt with several to the wrong beams
            inputs = specimen.prompts(model, (((3, 4),), ((4, 5),)))
        if name != "qwen3.5" or compat.QWEN35_BEAMS_HAVE_IMAGES:
            beams = answers(model, inputs, num_beams=2)
            assert beams.equal(answers(model, inputs, num_beams=2, use_cache=False))
    assert torch.equal(logits(model, specimen.prompts(model, ROWS)), untouched)


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_image_is_one_of_that_size(name: str) -> None:
    """`downsample` to a whole grid: what is encoded is what the family's `shrink` says, planes too."""
    specimen = zoo()[name]
    model = specimen.model()
    family, core = family_of(model), family_of(model).core(model)
    inputs = specimen.prompts(model, (((4, 6),), ((2, 3),)))
    with foveate.compress(model, "downsample:6") as handle:
        out = encode(model, inputs)
        short = logits(model, inputs)
        kept = [image.selection.indices for image in handle.report().images]
    grids = family.grids(core, "image", encoder_inputs(inputs))
    assert grids == [(4, 6), (2, 3)]
    with torch.no_grad():
        small = family.shrink(core, "image", encoder_inputs(inputs), [type(grids[0])(2, 3)] * 2)
        plain = core.get_image_features(**small)
    assert [len(places) for places in kept] == [6, 6]
    planes = [(out.pooler_output, plain.pooler_output)]
    if getattr(plain, "deepstack_features", None) is not None:
        planes += list(zip(out.deepstack_features, plain.deepstack_features, strict=True))
    for long, expected in planes:
        for image, places in enumerate(kept):
            assert torch.equal(long[image][places], expected[image])
    assert short.shape[1] < inputs["input_ids"].shape[1]


def test_shrinking_to_the_same_size_changes_nothing() -> None:
    for name in NAMES:
        specimen = zoo()[name]
        family, core = family_of(specimen.model()), family_of(specimen.model()).core(specimen.model())
        call = encoder_inputs(specimen.prompts(specimen.model(), ROWS))
        grids = family.grids(core, "image", call)
        assert grids == [(3, 4), (2, 3), (4, 5)]
        same = family.shrink(core, "image", call, grids)
        torch.testing.assert_close(same["pixel_values"], call["pixel_values"], atol=1e-5, rtol=1e-5)


def test_row_breaks_of_mistral_stay() -> None:
    specimen = zoo()["mistral3"]
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS[:1])
    ids = inputs["input_ids"][0]
    with foveate.compress(model, "divprune:2") as handle:
        out = logits(model, inputs)
        kept = handle.report().tokens_kept
    assert kept == 4 and int((ids == BREAK).sum()) == 3
    assert out.shape[1] == int((ids < 119).sum()) + kept  # everything else is there


def test_patches_that_fill_no_square_are_in_no_token_of_mistral() -> None:
    """The merger leaves out an odd last row and column; so do the probes."""
    model = zoo()["mistral3"].model()
    family, core = family_of(model), model.model
    call = {"pixel_values": torch.randn(2, 3, 28, 28), "image_sizes": torch.tensor([[20, 28], [28, 12]])}
    with foveate.compress(model, "fastervlm:50%"):
        output = core.get_image_features(**call)
    assert [layout.crops[0].grid for layout in output.foveate_encoded.layouts] == [(2, 3), (3, 1)]
    patches = torch.arange(5 * 7 + 7 * 3, dtype=torch.float32)[:, None]
    first, second = family.spread(core, "image", call, output, patches)
    assert first[:, 0].tolist() == [4, 6, 8, 18, 20, 22]  # (0 + 1 + 7 + 8) / 4, two to the right, 14 down
    assert second[:, 0].tolist() == [35 + 2, 35 + 8, 35 + 14]


def test_planes_of_deepstack_are_merged_with_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merging method gives a row the mean of its members' planes."""
    specimen = zoo()["qwen3-vl"]
    model = specimen.model()
    inputs = specimen.prompts(model, ROWS)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    text = model.model.language_model
    process = text._deepstack_process

    def spy(hidden: torch.Tensor, places: torch.Tensor, plane: torch.Tensor) -> torch.Tensor:
        seen.append((places, plane))
        return process(hidden, places, plane)

    monkeypatch.setattr(text, "_deepstack_process", spy)
    logits(model, inputs)
    with foveate.compress(model, "visionzip:4") as handle:
        logits(model, inputs)
        images = handle.report().images
    assert any(image.selection.assignment is not None for image in images)
    assert len(seen) == 4
    for (_, before), (places, after) in zip(seen[:2], seen[2:], strict=True):
        assert int(places.sum()) == sum(image.tokens_kept for image in images)
        parts = before.split([image.tokens_in for image in images])
        expected = [image.selection.apply(part) for image, part in zip(images, parts, strict=True)]
        torch.testing.assert_close(after, torch.cat(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3.5", "minicpm-v-4.6"])
def test_linear_layers_remember_what_stays_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state after a left-padded batch is that of each row alone; the run is that of what stays."""
    specimen = zoo()[name]
    model = specimen.model()
    with foveate.compress(model, "divprune:25%", positions="original") as handle:
        alone = model(**specimen.prompts(model, ROWS[:1]), use_cache=True)
        report = handle.report()
        both = model(**specimen.prompts(model, ROWS), use_cache=True)
    for one, two in zip(compat.cache_of(alone).layers, compat.cache_of(both).layers, strict=True):
        if hasattr(one, "recurrent_states"):
            states = [
                next(iter(s.values())) if isinstance(s, dict) else s
                for s in (one.recurrent_states, two.recurrent_states)
            ]
            torch.testing.assert_close(states[0][0], states[1][0], atol=1e-4, rtol=1e-3)
    inputs = specimen.prompts(model, ROWS[:1])
    torch.testing.assert_close(alone.logits, only_kept(model, inputs, report, monkeypatch), atol=2e-5, rtol=1e-4)


def test_minicpm_without_the_merger_in_its_tower() -> None:
    """`downsample_mode="4x"` keeps four times as many tokens."""
    specimen = zoo()["minicpm-v-4.6"]
    model = specimen.model()
    inputs = specimen.prompts(model, (((6, 4),),))
    inputs["target_sizes"] //= 2
    inputs["pixel_values"] = inputs["pixel_values"][..., : 12 * 8 * 4]
    inputs["downsample_mode"] = "4x"
    with foveate.compress(model, "fastervlm:25%") as handle:
        logits(model, inputs)
        (image,) = handle.report().images
    assert image.layout.crops[0].grid == (6, 4) and image.tokens_kept == 6


def test_images_of_llava_uhd_keep_their_order() -> None:
    """The tower runs images of equal size together; each gets its own values back."""
    specimen = zoo()["llava-uhd"]
    model = specimen.model()
    sizes = ((4, 5), (2, 3), (4, 5), (3, 4))
    inputs = specimen.prompts(model, [(size,) for size in sizes])
    with foveate.compress(model, "fastervlm:5") as handle:
        logits(model, inputs)
        together = handle.report().images
        for number, size in enumerate(sizes):
            logits(model, specimen.prompts(model, ((size,),), seed=1000 * number))
            (alone,) = handle.report().images
            assert together[number].selection.indices.equal(alone.selection.indices)
            assert together[number].layout.crops[0].grid == size


@pytest.mark.parametrize(
    ("name", "merge"),
    [("qwen3-vl", 4), ("glm-4v", 4), ("mistral3", 4), ("kimi-k2.5", 4), ("minicpm-v-4.6", 16), ("llava-uhd", 16)],
)
def test_what_methods_may_know_of_the_tower(name: str, merge: int) -> None:
    family = family_of(zoo()[name].model())
    tower = family.tower(family.core(zoo()[name].model()))
    assert (tower.num_layers, tower.has_cls, tower.merge, tower.last_used) == (3, False, merge, 2)
