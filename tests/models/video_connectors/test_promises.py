"""What every registered video connector promises; a new one is tested as soon as it is registered."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from contextlib import suppress

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.video_connectors import (
    Instruction,
    VideoConnector,
    all_video_connectors,
    build_video_connector,
    register_video_connector,
    unregister_video_connector,
    video_connector_of_sizes,
)
from tests.checkpointing import checkpoint
from tests.models.llava.small_llava import pictures
from tests.models.llava_video.small_llava_video import (
    VIDEO_ID,
    clips,
    open_gates,
    small_batch,
    small_llava_video,
    small_processor,
)
from tests.models.video_connectors.small_options import UNREAD, options_of

WIDTH, TEXT_WIDTH, WORDS = 48, 32, 3
SQUARE = Grid(6, 6)
SHAPES = [(4, Grid(6, 6)), (1, Grid(6, 6)), (3, Grid(6, 6)), (4, Grid(6, 12)), (5, Grid(5, 7))]


@pytest.fixture(params=list(all_video_connectors()))
def connector(request) -> VideoConnector:
    """Every connector, with weights of a large spread, so that outputs depend on every input."""
    torch.manual_seed(0)
    made = build_video_connector(request.param, WIDTH, TEXT_WIDTH, **options_of(request.param)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


def features_of(connector: VideoConnector, frames: int, grid: Grid = SQUARE, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spaces = (2,) if connector.reads_joint_space else ()
    return torch.randn(frames, grid.size, *spaces, WIDTH, generator=generator)


def instruction(connector: VideoConnector) -> Instruction | None:
    if not connector.reads_text:
        return None
    generator = torch.Generator().manual_seed(7)
    states = torch.randn(WORDS, WIDTH, generator=generator)
    return Instruction(torch.arange(WORDS), states, states.mean(0))


def run(connector: VideoConnector, frames: int = 4, grid: Grid = SQUARE, seed: int = 0) -> torch.Tensor:
    times = torch.arange(frames) * 0.5
    return connector(features_of(connector, frames, grid, seed), grid, times, instruction(connector))


def possible(connector: VideoConnector) -> list[tuple[int, Grid]]:
    shapes = []
    for frames, grid in SHAPES:
        with suppress(FoveateError):
            connector.output_shape(frames, grid)
            shapes.append((frames, grid))
    return shapes


def test_identity(connector):
    cls = type(connector)
    assert cls.title and (cls.paper == "" or cls.paper.startswith("arXiv "))
    assert inspect.getdoc(cls) and inspect.getdoc(cls.options_class)
    assert dataclasses.is_dataclass(cls.options_class) and cls.options_class.__dataclass_params__.frozen


def test_shapes_follow_from_sizes_without_weights(connector):
    sizes = video_connector_of_sizes(connector.name, options_of(connector.name))
    assert not list(sizes.parameters())
    assert {(4, Grid(6, 6)), (1, Grid(6, 6)), (3, Grid(6, 6))} <= set(possible(connector))
    for frames, grid in possible(connector):
        shape = sizes.output_shape(frames, grid)
        tokens = run(connector, frames, grid)
        assert tokens.ndim == 2 and tokens.shape[1] == TEXT_WIDTH
        assert len(tokens) == shape.size if connector.static_count else 1 <= len(tokens) <= shape.size
    for frames, grid in set(SHAPES) - set(possible(connector)):
        with pytest.raises(FoveateError) as error:
            run(connector, frames, grid)
        assert connector.name in str(error.value) and str(error.value).endswith(".")


def test_tokens_depend_on_every_frame_and_gradients_reach_every_parameter(connector):
    features = features_of(connector, 4).requires_grad_()
    tokens = connector(features, Grid(6, 6), torch.arange(4) * 0.5, instruction(connector))
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert features.grad is not None and bool(features.grad.flatten(1).ne(0).any(-1).all())
    for name, parameter in connector.named_parameters():
        if re.search(UNREAD.get(connector.name, r"$^"), name):
            continue
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_the_same_clip_gives_the_same_tokens_and_leaves_the_random_state(connector):
    state = torch.random.get_rng_state()
    first, second = run(connector), run(connector)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bfloat16(connector):
    features = features_of(connector, 4).bfloat16()
    text = instruction(connector)
    if text is not None and text.states is not None and text.pooled is not None:
        text = Instruction(text.ids, text.states.bfloat16(), text.pooled.bfloat16())
    tokens = connector.bfloat16()(features, Grid(6, 6), torch.arange(4) * 0.5, text)
    assert tokens.dtype == torch.bfloat16 and bool(tokens.isfinite().all())


def test_bad_input_is_refused_in_one_sentence(connector):
    features, text = features_of(connector, 4), instruction(connector)
    for wrong in (features[:, :-1], features[0], features[:0]):
        with pytest.raises(FoveateError, match="36 patches|at least one frame"):
            connector(wrong, Grid(6, 6), text=text)
    with pytest.raises(FoveateError, match="one timestamp for each of 4 frames"):
        connector(features, Grid(6, 6), torch.arange(3.0), text)
    with pytest.raises(FoveateError, match="text"):
        connector(features, Grid(6, 6), text=None if connector.reads_text else Instruction(torch.arange(2)))
    with pytest.raises(FoveateError, match="takes no budget" if not connector.nested else "cannot make 0 tokens"):
        connector(features, Grid(6, 6), text=text, budget=0 if connector.nested else 4)
    with pytest.raises(FoveateError, match=f"{connector.name} has no option spokes"):
        build_video_connector(connector.name, WIDTH, TEXT_WIDTH, spokes=3)


def test_in_a_llava_it_generates_saves_and_loads(connector, tmp_path):
    name, options = connector.name, options_of(connector.name)
    model, processor = open_gates(small_llava_video(name, **options)), small_processor(name, **options)
    batch = small_batch(processor)
    most = [connector.output_shape(frames, Grid(6, 6)).size for frames in (4, 3, 4)]
    assert (batch["input_ids"] == VIDEO_ID).sum(-1).tolist() == [most[0] + most[1], most[2]]
    generated = model.generate(**batch, max_new_tokens=4, do_sample=False)
    uncached = model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(generated, uncached)
    assert torch.equal(generated[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    with torch.no_grad():
        first = model(**batch, use_cache=False).logits[:, -1].argmax(-1)
    assert torch.equal(first, generated[:, batch["input_ids"].shape[1]])
    alone = processor(videos=clips(4, 3, 4)[2:], video_timestamps=[[0.0, 0.5, 1.0, 1.5]], text="<video>?",
                      return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        single, batched = model(**alone, use_cache=False).logits[0, -1], model(**batch, use_cache=False).logits[1, -1]
    torch.testing.assert_close(single, batched, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.connector_type == name
    assert torch.equal(small_batch(reader)["input_ids"], batch["input_ids"])
    with torch.no_grad():
        ours, theirs = (one.eval()(**batch, use_cache=False).logits for one in (model, again))
        torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_a_copy_in_a_llava_is_a_model_of_its_own(connector):
    name, options = connector.name, options_of(connector.name)
    model, batch = small_llava_video(name, **options), small_batch(small_processor(name, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        expected = model(**batch, use_cache=False).logits
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(copied(**batch, use_cache=False).logits, expected)


def test_in_a_llava_it_is_trained(connector):
    name, options = connector.name, options_of(connector.name)
    model, batch = small_llava_video(name, **options), small_batch(small_processor(name, **options))
    labels = torch.where(batch["input_ids"] >= 256, -100, batch["input_ids"])
    output = model(**batch, labels=labels, use_cache=False)
    shifted = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, shifted)
    output.loss.backward()
    for own, parameter in model.model.multi_modal_projector.named_parameters():
        assert parameter.grad is not None or re.search(UNREAD.get(name, r"$^"), own), own


def test_checkpointing_in_a_llava_changes_no_gradient(connector):
    name, options = connector.name, options_of(connector.name)
    model, batch = open_gates(small_llava_video(name, **options)), small_batch(small_processor(name, **options))
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    labels = torch.where(batch["input_ids"] >= 256, -100, batch["input_ids"])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            checkpoint(model)
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch, labels=labels, use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for own, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][own], gradient, atol=1e-4, rtol=1e-3)


def test_a_copy_has_weights_of_its_own(connector):
    name, options = connector.name, options_of(connector.name)
    model, batch = open_gates(small_llava_video(name, **options)), small_batch(small_processor(name, **options))
    copied = copy.deepcopy(model)
    parts = [part for part in ("multi_modal_projector", "memory_readers") if hasattr(model.model, part)]
    with torch.no_grad():
        before = model(**batch, use_cache=False).logits
        for part in parts:
            for parameter in getattr(model.model, part).parameters():
                parameter.zero_()
            assert not torch.allclose(model(**batch, use_cache=False).logits, before, atol=1e-3), part
            torch.testing.assert_close(copied(**batch, use_cache=False).logits, before, atol=1e-4, rtol=1e-4)


def test_a_batch_equals_single_prompts_with_padding_on_both_sides(connector):
    """Clips, images and rows without either."""
    name, options = connector.name, options_of(connector.name)
    model, processor = open_gates(small_llava_video(name, **options)), small_processor(name, **options)
    text = ["no clip here at all", "<image> and <video>, <video>", "<video>, <image>?", "<video>."]
    rows = [[], clips(4, 3), clips(4), clips(1)]
    images = [[], pictures()[:1], pictures()[1:2], []]
    for side in ("left", "right"):
        processor.tokenizer.padding_side = side
        batch = processor(images=images, videos=[clip for row in rows for clip in row], text=text,
                          return_tensors="pt", padding=True)  # fmt: skip
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
            for row, own in enumerate(text):
                media = {"images": images[row] or None, "videos": rows[row] or None}
                alone = model(**processor(**media, text=own, return_tensors="pt"), use_cache=False).logits[0]
                together = logits[row][batch["attention_mask"][row].bool()]
                torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_names_and_registration():
    class Mine(type(build_video_connector("average", 4, 4))):
        name = "mine"

    with pytest.raises(FoveateError, match="there is no video connector 'mine'; possible are average"):
        build_video_connector("mine", 4, 4)
    register_video_connector(Mine)
    try:
        assert isinstance(build_video_connector("mine", 4, 4), Mine)
    finally:
        unregister_video_connector("mine")
    with pytest.raises(FoveateError, match="is no video connector"):
        register_video_connector(torch.nn.Linear)
