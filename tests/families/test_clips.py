"""Clips, and clips among images: in every order, by themselves and in batches."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import foveate
from foveate import FoveateError, compat
from foveate.core.method import Site
from foveate.core.registry import methods_at
from foveate.core.video import VideoMethod
from foveate.families import families
from tests.families.reference import answers, logits, only_kept
from tests.families.zoo import zoo
from tests.runtime.matrix import covering

IMAGE, CLIP = (3, 4), (2, 2, 3)
MIXED = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5", "gemma4-e")
#: GLM-4V writes clips and images with the same placeholder, and takes no prompt with both.
CASES = [(name, row) for name in MIXED for row in ((IMAGE, CLIP), (CLIP, IMAGE), (CLIP, CLIP))]
CASES += [("glm-4v", (CLIP,)), ("glm-4v", (CLIP, CLIP)), ("glm-4.6v", (CLIP,))]


def skip_without_clips(name: str) -> None:
    if name == "gemma4-e" and not compat.GEMMA4_READS_CLIPS:
        pytest.skip("Gemma 4 reads no clips in transformers before 5.23: its own code fails")


@pytest.mark.parametrize(("name", "row"), CASES)
def test_a_run_is_the_model_given_only_what_stays(name: str, row: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_clips(name)
    specimen = zoo()[name]
    model = specimen.model()
    inputs = specimen.prompts(model, (row,))
    untouched = logits(model, inputs)
    with foveate.compress(model, "divprune:100%"):
        assert torch.equal(logits(model, inputs), untouched)
    with foveate.compress(model, "fastervlm:25%", positions="original") as handle:
        short = logits(model, inputs)
        report = handle.report()
        assert answers(model, inputs).equal(answers(model, inputs, use_cache=False))
    assert sorted(image.modality for image in report.images) == sorted(
        "video" if len(size) == 3 else "image" for size in row
    )
    assert all(image.tokens_kept == 3 and image.tokens_in == 12 for image in report.images)
    for image in report.images:
        crops = image.layout.crops
        assert [crop.kind for crop in crops] == (["frame"] * 2 if image.modality == "video" else ["image"])
    torch.testing.assert_close(short, only_kept(model, inputs, report, monkeypatch), atol=2e-5, rtol=1e-4)
    assert torch.equal(logits(model, inputs), untouched)


def test_families_that_read_clips_are_those_whose_models_encode_them() -> None:
    for family in families().values():
        classes = [getattr(transformers, str(MODEL_MAPPING_NAMES.get(kind)), None) for kind in family.model_types]
        encodes = any(hasattr(cls, "get_video_features") for cls in classes)
        assert family.reads_clips == encodes, family.name


def test_a_live_model_chooses_no_frames(tmp_path) -> None:
    model = zoo()["qwen2-vl"].model()
    with pytest.raises(
        FoveateError, match=r"scene:16 chooses frames of a file, .*attach 'divprune:25%' to the model"
    ) as error:
        foveate.compress(model, "scene:16 + divprune:25%")
    assert error.value.code == "chooses-frames"
    with pytest.raises(FoveateError, match=r"by foveate\.clips\.open_clip\(path, sampler=\.\.\.\)\."):
        foveate.compress(model, "uniform-frames:4")
    with pytest.raises(FoveateError, match="a plan that is saved is attached to the model, and scene:16"):
        foveate.Plan.of("scene:16 + divprune:25%").save(tmp_path)


@pytest.mark.parametrize("name", MIXED)
def test_a_batch_is_its_rows(name: str) -> None:
    skip_without_clips(name)
    specimen = zoo()[name]
    model = specimen.model()
    rows = ((CLIP, IMAGE), (IMAGE,), (IMAGE, CLIP, IMAGE), (CLIP,))
    batch = specimen.prompts(model, rows)
    with foveate.compress(model, "fastervlm:25%") as handle:
        together = logits(model, batch)
        assert len(handle.report().images) == sum(map(len, rows))
        for number in range(len(rows)):
            until = specimen.prompts(model, [() if i != number else rows[i] for i in range(number + 1)])
            inputs = {key: value[-1:] if value.shape[0] == number + 1 else value for key, value in until.items()}
            alone = {key: inputs[key] for key in inputs if key.startswith(("pixel", "image", "video", "num_frames"))}
            alone |= {
                key: batch[key][number : number + 1, batch["attention_mask"][number].bool()]
                for key in ("input_ids", "attention_mask", "mm_token_type_ids")
            }
            expected = logits(model, alone)[0]
            torch.testing.assert_close(together[number, -len(expected) :], expected, atol=1e-4, rtol=1e-3)


def test_frames_of_a_clip_are_its_crops_in_the_order_of_the_prompt() -> None:
    specimen = zoo()["qwen3-vl"]
    model = specimen.model()
    with foveate.compress(model, "divprune:50%") as handle:
        logits(model, specimen.prompts(model, (((3, 2, 3),),)))
        (clip,) = handle.report().images
    assert [crop.index.tolist() for crop in clip.layout.crops] == [
        list(range(start, start + 6)) for start in (0, 6, 12)
    ]
    assert {crop.grid for crop in clip.layout.crops} == {(2, 3)}


FAMILIES = (*MIXED, "llava-onevision", "glm-4v", "glm-4.6v")
METHODS = sorted(name for name, cls in methods_at(Site.PRE_LLM).items() if issubclass(cls, VideoMethod))


@pytest.mark.parametrize(("name", "method"), covering(list(FAMILIES), METHODS, times=2))
def test_methods_on_clips_leave_the_announced_number(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every family with clips, alone and mixed with images in both orders; a run is the model given what stays."""
    skip_without_clips(name)
    specimen, clip = zoo()[name], (3, 2, 3)
    model = specimen.model()
    rows = [(clip,)] if name.startswith("glm") else [(clip,), (IMAGE, clip), (clip, IMAGE)]
    for row in rows:
        inputs = specimen.prompts(model, (row,))
        untouched = logits(model, inputs)
        with foveate.compress(model, f"{method}:100%"):
            assert torch.equal(logits(model, inputs), untouched)
        with foveate.compress(model, f"{method}:60%", positions="original") as handle:
            short = logits(model, inputs)
            report = handle.report()
            assert answers(model, inputs).equal(answers(model, inputs, use_cache=False))
        for image in report.images:
            assert image.tokens_kept == handle.plan.steps[0].count(image.tokens_in) < image.tokens_in
        assert [image.frames for image in report.images if image.modality == "video"] == ["3 frames"]
        torch.testing.assert_close(short, only_kept(model, inputs, report, monkeypatch), atol=2e-5, rtol=1e-4)
    assert torch.equal(logits(model, inputs), untouched)


def test_frames_that_lost_tokens_are_not_compared() -> None:
    specimen = zoo()["qwen2-vl"]
    model = specimen.model()
    with (
        foveate.compress(model, "divprune:50% + evs:25%"),
        pytest.raises(FoveateError, match="let a method for clips be the first step") as error,
    ):
        logits(model, specimen.prompts(model, ((CLIP,),)))
    assert error.value.code == "needs-whole-frames"


def test_a_chunk_of_one_frame_in_kimi() -> None:
    """Longer chunks are refused by the model itself in transformers 5.23."""
    model = zoo()["kimi-k2.5"].model()
    with foveate.compress(model, "divprune:50%"):
        output = model.model.get_video_features(torch.randn(24, 3, 4, 4), torch.tensor([[1, 4, 6]]))
    (layout,) = output.foveate_encoded.layouts
    assert layout.count == 6 and layout.crops[0].grid == (2, 3)
