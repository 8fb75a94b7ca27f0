"""The length of a nested connector as a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import foveate
from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.core.registry import all_methods
from foveate.methods.connector.nested import Nested
from foveate.models.connectors import all_connectors
from foveate.models.connectors.registry import connector_of_sizes
from foveate.testing.live import keeping_everything_changes_nothing, restoring_leaves_the_model_as_it_was
from foveate.testing.small_model import small_model
from tests.models.connectors.small_options import options_of
from tests.models.llava.small_llava import pictures, small_batch, small_llava, small_processor
from tests.models.llava_uhd.test_llava_uhd_connectors import batch_of, made

NESTED = [name for name, connector in all_connectors().items() if connector.nested and not connector.reads_text]


@pytest.fixture(params=NESTED)
def name(request) -> str:
    return request.param


def lengths(name: str) -> list[int]:
    """Numbers of tokens below the default that the connector can give on 6 x 6 patches."""
    connector = connector_of_sizes(name, options_of(name))
    found = []
    for count in range(1, connector.output_grid((6, 6)).size):
        try:
            connector.output_grid((6, 6), count)
        except FoveateError:
            continue
        found.append(count)
    return found


def test_every_length_gives_the_tokens_of_the_connector(name):
    model = small_llava(name, **options_of(name))
    inputs = small_batch(small_processor(name, **options_of(name)))
    read = []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    assert lengths(name)
    for count in lengths(name):
        expected = torch.cat(model.get_image_features(inputs["pixel_values"], budget=count).pooler_output)
        read.clear()
        with foveate.compress(model, f"nested:{count}") as handle, torch.no_grad():
            model(**inputs)
            images = handle.report().images
        assert [image.tokens_kept for image in images] == [count] * 3
        (embeds,) = read
        torch.testing.assert_close(embeds[1, -1 - count : -1], expected[2 * count :], atol=1e-6, rtol=1e-6)


def test_it_equals_a_model_that_is_configured_for_the_length(name):
    if name != "m3":
        pytest.skip("its tests know how it is configured")
    whole, short = small_llava("m3"), small_llava("m3", tokens=9)
    short.load_state_dict(whole.state_dict())
    expected = short(**small_batch(small_processor("m3", tokens=9))).logits[:, -1]
    with foveate.compress(whole, "nested:9"):
        found = whole(**small_batch(small_processor("m3"))).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_promises_of_every_method(name):
    model = small_llava(name, **options_of(name))
    inputs = dict(small_batch(small_processor(name, **options_of(name))))
    plan = f"nested:{lengths(name)[0]}"
    keeping_everything_changes_nothing(model, inputs, "nested:100%")
    restoring_leaves_the_model_as_it_was(model, inputs, plan)
    with foveate.compress(model, plan):
        generated = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False, use_cache=False), generated)


def test_later_steps_act_on_its_tokens():
    model = small_llava("m3")
    with foveate.compress(model, "nested:9 + divprune:4") as handle:
        model(**small_batch(small_processor("m3")))
        assert [image.tokens_kept for image in handle.report().images] == [4] * 3


def test_native_resolution_and_fractions():
    model, processor = made("m3", multiple=2)
    batch = batch_of(processor, pictures())
    sizes = model.get_image_features(batch["pixel_values"], batch["grid_hws"]).grid_hws.prod(-1).tolist()
    assert len(set(sizes)) > 1
    with foveate.compress(model, "nested:25%") as handle:
        model.generate(**batch, max_new_tokens=2)
        assert [image.tokens_kept for image in handle.report().images] == [size // 4 for size in sizes]


def test_asking_shows_the_length():
    model, processor = made("m3", multiple=2)
    answer = foveate.ask(pictures()[0], "?", (model, processor), "nested:25%", max_new_tokens=1)
    full = model.get_image_features(**processor.image_processor(pictures()[0], return_tensors="pt")).grid_hws.prod()
    assert (answer.stages[-1].name, answer.stages[-1].tokens) == ("nested:25%", int(full) // 4)


def test_what_is_refused():
    for plan, model, code in (
        ("nested:4", small_llava("mlp"), "needs-nested-connector"),
        ("nested:4", small_model(), "needs-nested-connector"),
        ("divprune:9 + nested:4", small_llava("m3"), "wrong-order"),
        ("nested", small_llava("m3"), "needs-budget"),
        ("nested:9 + fastervlm:4", small_llava("m3"), "needs-every-patch"),
        ("mqt:4", small_llava("m3"), "needs-nested-connector"),
        ("fastervlm:4", small_llava("mqt", **options_of("mqt")), "needs-equal-regions"),
        ("downsample:4", small_llava("mqt", **options_of("mqt")), "needs-one-raster"),
    ):
        with pytest.raises(FoveateError) as error:
            foveate.compress(model, plan)
        assert error.value.code == code
    with (
        foveate.compress(model := small_llava("m3"), "nested:5"),
        pytest.raises(FoveateError, match="cannot make 5 tokens of 6 x 6 patches; possible are 1, 4, 9, 36"),
    ):
        model(**small_batch(small_processor("m3")))


@pytest.mark.parametrize("name", [name for name in NESTED if name in all_methods()])
def test_a_paper_s_method_is_the_length_of_its_connector(name):
    model = small_llava(name, **options_of(name))
    inputs = small_batch(small_processor(name, **options_of(name)))
    logits = []
    for method in ("nested", name):
        with foveate.compress(model, f"{method}:{lengths(name)[-1]}"):
            logits.append(model(**inputs).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


def test_a_method_for_one_connector_refuses_others():
    @dataclass(frozen=True)
    class Other(Nested):
        name: ClassVar[str] = "other-nested"
        connector: ClassVar[str | None] = "mqt"

    with pytest.raises(FoveateError, match="other-nested needs the connector mqt, and this model has m3"):
        foveate.compress(small_llava("m3"), Plan.of(Other(), 4))
