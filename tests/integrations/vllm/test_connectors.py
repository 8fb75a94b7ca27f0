"""Lengths of nested connectors in vLLM: plans, token counts and refusals are decided without vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.integrations.vllm.connectors import check_processor, served_connector
from foveate.integrations.vllm.plans import EnginePlans, serving_of
from foveate.models.llava.image_processing import ViewImageProcessor
from foveate.models.llava.layouts import LlavaUHDLayout, PadLayout
from tests.integrations.vllm.test_plans import CLIP, QWEN
from tests.models.connectors.small_options import SMALL
from tests.models.llava.small_encoder_llava import llava as encoder_llava
from tests.models.llava.small_llava import GRID, PATCH, SIDE, small_config, small_processor
from tests.refusals import refused


def serving(connector: str, encoder: Any = "clip", **options: Any) -> EnginePlans:
    """What an engine of a small model accepts; its images have 6 x 6 patches."""
    config = small_config(connector, encoder, **options)
    config.foveate_plan = "full model"
    plans = serving_of(config)
    assert plans is not None
    return plans


M3, MQT = serving("m3"), serving("mqt", **SMALL["mqt"])
TOKENFLEX = serving("tokenflex", tokens=16, lengths=[4, 16])


@pytest.mark.parametrize(
    ("plans", "tokens", "counts"),
    [
        (M3, 36, {"nested:9": 9, "nested:25%": 9, "m3:4": 4, "nested:36": 36, "nested:99": 36}),
        (MQT, 36, {"mqt:5": 5, "mqt:25%": 9, "nested:36": 36, "mqt:7 + divprune:3": 3}),
        (TOKENFLEX, 16, {"tokenflex:9": 9, "nested:25%": 4, "tokenflex:25": 16, "tokenflex:9 + pool:50%": 4}),
    ],
    ids=["m3", "mqt", "tokenflex"],
)
def test_counts_follow_from_the_sizes_of_the_connector(plans: EnginePlans, tokens: int, counts: dict[str, int]) -> None:
    assert plans.connector is not None and plans.connector.tokens == tokens
    assert plans.setting("full model").count(tokens) == tokens
    for plan, count in counts.items():
        assert plans.setting(plan).count(tokens) == count, plan
    assert len({plans.setting(plan).key for plan in counts}) == len(counts)


def test_places_are_those_of_the_parts_of_the_image() -> None:
    """Where tokens stand for parts of it: 3 x 3 of 6 x 6 have the centres of squares; learned queries are the first."""
    assert M3.setting("nested:9").places == tuple(row * GRID + column for row in (1, 3, 5) for column in (1, 3, 5))
    assert MQT.setting("mqt:3").places == (0, 1, 2)
    for plans, plan in ((M3, "nested:36"), (M3, "m3:9"), (TOKENFLEX, "tokenflex:25"), (MQT, "full model")):
        assert plans.setting(plan).places is None, plan  # the connector gives all, and M3 averages them afterwards


@pytest.mark.parametrize(
    ("plan", "plans", "code"),
    [
        ("nested:16", CLIP, "needs-nested-connector"),
        ("mqt:16", QWEN, "needs-nested-connector"),
        ("fourier:16", CLIP, "site-not-served"),
        ("mqt:16", TOKENFLEX, "needs-nested-connector"),
        ("fourier:16", TOKENFLEX, "needs-nested-connector"),
        ("nested:16", serving("mlp"), "needs-nested-connector"),
        ("divprune:9 + tokenflex:4", TOKENFLEX, "wrong-order"),
        ("tokenflex:9 + fastervlm:4", TOKENFLEX, "needs-every-patch"),
        ("fastervlm:4", MQT, "needs-equal-regions"),
        ("fastervlm:4", TOKENFLEX, "needs-equal-regions"),  # 4 x 4 of 6 x 6
        ("fastervlm(layer=3):4", M3, "needs-later-block"),
        ("downsample:16", M3, "site-not-served"),
    ],
)
def test_what_cannot_be_served_is_refused(plan: str, plans: EnginePlans, code: str) -> None:
    with refused(code):
        plans.setting(plan)


@pytest.mark.parametrize(
    ("plan", "plans", "message"),
    [
        ("nested:10", M3, "cannot make 10 tokens of 6 x 6 patches; possible are 1, 4, 9, 36"),
        ("tokenflex:8", TOKENFLEX, "possible are square numbers from 1 to 36"),
    ],
)
def test_a_length_that_the_connector_cannot_give_names_the_possible_ones(
    plan: str, plans: EnginePlans, message: str
) -> None:
    with pytest.raises(FoveateError, match=message):
        plans.setting(plan, request=True)


def test_connectors_of_one_length_are_counted_and_measured() -> None:
    """A token of TokenPacker is a square of 2 x 2 patches, and it reads the blocks that it chooses."""
    plans = serving("tokenpacker", scale=2)
    assert plans.connector is not None
    assert (plans.connector.tokens, plans.tower.merge) == (9, 4)
    layers = plans.connector.connector.feature_layers(4)
    assert plans.tower.output_layer == max(layer % 5 for layer in layers) - 1
    assert plans.setting("fastervlm:4").needs and plans.setting("fastervlm:4").count(9) == 4


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (encoder_llava("lookupvit")[0].config, "encoder-not-served"),
        (small_config("quecc", scale=3), "needs-prompt"),
        (small_config("llava_mini", size=2, prefusion_layers=1), "needs-prompt"),
    ],
    ids=["encoder", "text", "prefusion"],
)
def test_models_that_vllm_cannot_run_are_refused_with_and_without_a_plan(config: Any, code: str) -> None:
    with refused(code, "foveate serve runs every"):
        served_connector(config)
    config.foveate_plan = "full model"
    with refused(code):
        serving_of(config)


def test_a_grid_that_the_connector_cannot_divide_is_refused() -> None:
    with pytest.raises(FoveateError, match="multiples of 4, and this image has 6 x 6 patches"):
        served_connector(small_config("tokenpacker", scale=4))


def test_processors_are_checked_against_the_model() -> None:
    config, processor = small_config("m3"), small_processor("m3")
    check_processor(config, processor)
    processor.image_processor = ViewImageProcessor(PadLayout(SIDE, PATCH))
    check_processor(config, processor)
    for change, message in (
        ({"image_processor": ViewImageProcessor(PadLayout(2 * SIDE, PATCH))}, "96 x 96 pixels, .* reads 48 x 48"),
        ({"image_processor": ViewImageProcessor(LlavaUHDLayout(SIDE, PATCH))}, "several views of an image"),
        ({"image_token_id": 7}, "has the id 7, and that of the model 259"),
        ({"connector_type": "mqt"}, "counts the tokens of the connector mqt"),
    ):
        other = small_processor("m3")
        for name, value in change.items():
            setattr(other, name, value)
        with pytest.raises(FoveateError, match=message):
            check_processor(config, other)


def test_grids_are_those_of_the_encoder() -> None:
    served = served_connector(small_config("m3", "siglip"))
    assert served is not None and served.grid == Grid(GRID, GRID)
    assert served_connector(small_config("m3", "siglip")) == served
    assert served_connector(small_config("m3", "siglip", tokens=9)) != served
