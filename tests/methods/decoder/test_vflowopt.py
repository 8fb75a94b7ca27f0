"""VFlowOpt's second stage: the encoder's scores reach the decoder's layers."""

from __future__ import annotations

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from foveate.core.tokens import EncoderSpec
from foveate.methods.decoder.vflowopt import VFlowOptDecoder
from foveate.testing.layer_tokens import changed, layer_tokens
from foveate.testing.live import answers
from tests.families.reference import encode
from tests.families.zoo import zoo
from tests.runtime.test_decoder_hooks import deep

TOWER = EncoderSpec(12, False)


def test_the_highest_scores_stay_and_newlines_with_them() -> None:
    need = VFlowOptDecoder().needs(TOWER)[0]
    scores = torch.tensor([0.0, 5.0, 1.0, 0.0, 4.0, 2.0, 0.0, 3.0])
    tokens = changed(layer_tokens(8), measured={need: scores})
    assert VFlowOptDecoder()(tokens, 3).indices.tolist() == [1, 4, 7]
    newlines = torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor([3, 6]), True)
    assert VFlowOptDecoder()(changed(tokens, separators=newlines), 3).indices.tolist() == [1, 3, 6]
    shorter = changed(
        tokens, features=tokens.features[:4], indices=tokens.indices[:4], origin=torch.tensor([0, 2, 4, 5])
    )
    assert VFlowOptDecoder()(shorter, 2).indices.tolist() == [2, 3]


def test_what_is_not_declared_is_not_there() -> None:
    with pytest.raises(FoveateError, match="was not measured"):
        VFlowOptDecoder()(layer_tokens(8), 3)


def test_the_authors_layers() -> None:
    assert VFlowOptDecoder().layers(28) == (9, 18)
    assert VFlowOptDecoder().layers(2) == (1,)


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("first", ["vflowopt(threshold=1.05, cell=2):60% + ", "divprune:70% + ", ""])
def test_both_stages_follow_one_score(kind: str, first: str) -> None:
    specimen, model = deep(kind)
    inputs = specimen.prompts(model, (((3, 4),), ((2, 3), (4, 3)), ((4, 5),)))
    plan = f"{first}vflowopt-decoder(threshold=1.05):70%@2 + vflowopt-decoder(threshold=1.05):50%@4"
    with foveate.compress(model, plan) as handle:
        written = answers(model, inputs)
        images = handle.report().images
        scores = [own for (own,) in (list(image.values()) for image in encode(model, inputs).foveate_encoded.measured)]
        assert answers(model, inputs, use_cache=False) == written
        assert answers(model, specimen.prompts(model, (((3, 4),),)))[0] == written[0]
    for image, score in zip(images, scores, strict=True):
        left = image.selection.indices
        for layer, share in zip(image.layers, (0.7, 0.5), strict=True):
            order = score[left].argsort(descending=True, stable=True)
            left = left[order[: round(share * len(left))].sort().values]
            assert torch.equal(layer.indices, left)


def test_newlines_stay_in_a_live_model() -> None:
    specimen = zoo()["llava-next"]
    model = specimen.model()
    inputs = specimen.prompts(model, (((6, 7),),))
    with foveate.compress(model, "vflowopt-decoder(threshold=1.0):50%@1") as handle, torch.no_grad():
        model(**inputs)
        (image,) = handle.report().images
    assert image.layout.separators is not None
    assert set(image.layout.separators.nonzero().flatten().tolist()) <= set(image.layers[0].indices.tolist())


def test_an_image_that_is_not_encoded_whole_has_no_scores() -> None:
    with pytest.raises(FoveateError, match="hub_attention of every patch"):
        foveate.compress(zoo()["qwen2.5-vl"].model(), "downsample:50% + vflowopt-decoder:3@1")


@pytest.mark.parametrize("arguments", [{"threshold": -0.1}])
def test_wrong_arguments_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(FoveateError, match="from 0 on"):
        VFlowOptDecoder(**arguments)  # ty: ignore[invalid-argument-type]
