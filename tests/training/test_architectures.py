"""The kinds of models that recipes train, beside LLaVA-UHD, which the other tests train."""

import pytest
import torch
from PIL import Image
from torch import nn

import foveate
from foveate import FoveateError
from foveate.training.architectures import ARCHITECTURES, architecture_of
from foveate.training.building import build_model, export, new_model
from foveate.training.collate import Collator
from foveate.training.dense_labels import NUM_CLASSES, cell_targets, page_targets, usual_cells
from foveate.training.examples import Example
from foveate.training.recipe import ModelChoice, NewModel
from foveate.training.training_model import TrainingModel
from tests.training.small_training import VISION

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN_TEXT = {**TEXT, "model_type": "qwen2", "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2]}}
CLIP = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
QWEN = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 14,
    "window_size": 56,
    "fullatt_block_indexes": [1],
}
NEW = {
    "llava": NewModel(architecture="llava", vision=CLIP, text=TEXT),
    "qwen2.5-vl": NewModel(
        architecture="qwen2.5-vl", vision=QWEN, text=QWEN_TEXT, images={"min_pixels": 56 * 56, "max_pixels": 112 * 112}
    ),
}


class Drawn:
    """A character at a place."""

    def __init__(self, char: str, x: float, y: float) -> None:
        self.char, self.x, self.y = char, x, y


def written(width: int, height: int, answer: str) -> Example:
    image = Image.effect_noise((width, height), 80).convert("RGB")
    drawn = [Drawn(char, 8 + 12 * place, 20) for place, char in enumerate(answer)]
    return Example.of_question(image, "What is written?", answer, drawn)


EXAMPLES = [written(56, 56, "abc"), written(112, 84, "7%")]


@pytest.fixture(params=NEW)
def made(request):
    return request.param, *new_model(NEW[request.param], seed=0)


def test_every_kind_is_known_by_its_model_and_its_processor(made):
    name, model, processor = made
    assert architecture_of(model) is architecture_of(processor) is ARCHITECTURES[name]
    with pytest.raises(
        FoveateError,
        match="Linear cannot be trained here; possible are llava-uhd, llava-video, llava, qwen2.5-vl",
    ):
        architecture_of(nn.Linear(1, 1))


def test_what_the_heads_read_is_what_the_language_model_gets(made):
    name, model, processor = made
    training_model = TrainingModel(model)
    batch = Collator(processor, cells=True)(EXAMPLES)
    seen = {}
    ARCHITECTURES[name].capture_tokens(model, seen.__setitem__)
    read = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        training_model(**batch)
    images = batch["input_ids"] == processor.image_token_id
    assert int(images.sum()) == len(batch["cells"]) == len(seen["tokens"])
    tokens = seen["tokens"]
    if name == "llava":
        tokens = model.model.multi_modal_projector(tokens)
        assert seen["cls"].shape == (2, 24)
    torch.testing.assert_close(read[0][images], tokens)


def test_cells_are_those_of_the_patches_of_a_token(made):
    name, _, processor = made
    collate = Collator(processor, answers=False, cells=True, pages=True)
    batch = collate(EXAMPLES)
    grids = {"llava": [(4, 4), (4, 4)], "qwen2.5-vl": [(4, 4), (6, 8)]}[name]
    stages = {"llava": 0, "qwen2.5-vl": 1}[name]
    expected = [
        torch.from_numpy(
            cell_targets(
                example.characters[0],
                example.images[0].size,
                (grid[0] >> stages, grid[1] >> stages),
                usual_cells(stages),
            )
        )
        for example, grid in zip(EXAMPLES, grids, strict=True)
    ]
    assert torch.equal(batch["cells"], torch.cat(expected))
    assert [int(row.sum()) for row in batch["pages"]] == [3, 2]


def test_loss_is_the_models_and_reaches_every_part(made):
    name, model, processor = made
    training_model = TrainingModel(model)
    collate = Collator(processor, cells=True, answer_attention=True, pages=True, colours=True)
    batch = collate(EXAMPLES)
    training_model.supervise_answer_attention([0, 1])
    sums = training_model(**batch)
    plain = {key: value for key, value in batch.items() if key not in ("cells", "answer_targets", "pages", "colours")}
    loss = model(**plain).loss
    assert float(sums["answer_loss"] / sums["answer_tokens"]) == pytest.approx(float(loss), rel=1e-5)
    assert int(sums["answer_attention_count"]) == 2 * 5
    assert ("page_loss" in sums) == (name == "llava")
    sum(value for key, value in sums.items() if key.endswith("loss")).backward()
    reached = {training_model.part_of(n) for n, p in training_model.named_parameters() if p.grad is not None}
    bridge = "connector" if name == "llava" else "stages"
    assert reached == {"vision_tower", bridge, "language_model", "heads"}


def test_reading_is_learned(made):
    """A few hundred steps on two pages name every character of them: heads, places and gradients fit together."""
    name, model, processor = made
    training_model = TrainingModel(model)
    batch = Collator(processor, answers=False, cells=True, pages=True, colours=True)(EXAMPLES)
    optimiser = torch.optim.AdamW(training_model.parameters(), lr=3e-3)
    for _ in range(150):
        sums = training_model(**batch)
        loss = sum(value for key, value in sums.items() if key.endswith("loss"))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert int(sums["cell_right"]) == int(sums["cell_characters"]) == 5
    assert float(sums["colour_loss"] / sums["colour_count"]) < 0.01
    if name == "llava":
        assert float(sums["page_loss"] / sums["page_count"]) < 0.05


def test_an_exported_model_is_loaded_like_any_other(made, tmp_path):
    _, model, processor = made
    folder = export(model, processor, tmp_path / "model", torch.float32)
    loaded, _ = foveate.load(folder)
    assert type(loaded) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    answer = foveate.ask(EXAMPLES[1].images[0], "What is written?", model=str(folder), plan="random:4")
    assert answer.tokens.read == 4
    again, _ = build_model(ModelChoice(pretrained=str(folder)), 0)
    assert again.training and type(again) is type(model)


def test_a_language_model_can_be_taken_over(tmp_path):
    source, processor = new_model(NEW["llava"], seed=3)
    folder = export(source, processor, tmp_path / "source", torch.float32)
    new = NewModel(**{**vars(NEW["qwen2.5-vl"]), "language_model": str(folder)})
    model, _ = new_model(new, seed=4)
    theirs, ours = source.model.language_model.state_dict(), model.model.language_model.state_dict()
    for key, value in theirs.items():
        assert torch.equal(ours[key][: len(value)], value), key
    assert all(not ours[key].any() for key in ours if key not in theirs)  # biases of queries, keys and values
    wide = NewModel(**{**vars(new), "text": {**QWEN_TEXT, "intermediate_size": 64}})
    with pytest.raises(FoveateError, match="language_model: the weights of .* do not fit model.new.text"):
        new_model(wide, seed=4)


def test_a_deeper_language_model_with_more_words_gives_its_first_layers(tmp_path):
    text = NEW["llava"].text
    deep = {**text, "num_hidden_layers": text["num_hidden_layers"] + 1}
    source, processor = new_model(NewModel(**{**vars(NEW["llava"]), "text": deep, "phrases": ["What is "]}), seed=3)
    folder = export(source, processor, tmp_path / "source", torch.float32)
    model, _ = new_model(NewModel(**{**vars(NEW["llava"]), "language_model": str(folder)}), seed=4)
    theirs, ours = source.model.language_model.state_dict(), model.model.language_model.state_dict()
    assert len(theirs) > len(ours) and len(theirs["embed_tokens.weight"]) == len(ours["embed_tokens.weight"]) + 1
    for key, value in ours.items():
        assert torch.equal(value, theirs[key][: len(value)]), key


def test_unknown_kinds_are_refused():
    with pytest.raises(
        FoveateError, match="'blip' is not known; possible are llava-uhd, llava-video, llava, qwen2.5-vl"
    ):
        new_model(NewModel(architecture="blip", vision={}, text={}), seed=0)


def test_pages_name_their_characters_once():
    drawn = [Drawn(char, 0, 0) for char in "aé a"]
    assert page_targets(drawn).nonzero()[0].tolist() == [0, ord("a") - 32]
    assert page_targets(None).tolist() == [-1] * (NUM_CLASSES - 1)


def test_a_window_is_a_part_of_the_positions():
    model, processor = new_model(NEW["llava"], seed=0)
    collate = Collator(processor, answers=False, cells=True, window=2)
    batch = collate(EXAMPLES)
    assert batch["pixel_values"].shape == (2, 3, 28, 28)
    expected = [cell_targets(e.characters[0], e.images[0].size, (2, 2), usual_cells(0)) for e in EXAMPLES]
    assert torch.equal(batch["cells"], torch.cat([torch.from_numpy(rows) for rows in expected]))
    # A tower that has only the positions of a window, on the same pixels, says the same; every window comes.
    ARCHITECTURES["llava"].enable_windows(model)
    seen = {}
    ARCHITECTURES["llava"].capture_tokens(model, seen.__setitem__)
    table = model.model.vision_tower.embeddings.position_embedding.weight
    part, _ = new_model(NewModel(**{**vars(NEW["llava"]), "vision": {**CLIP, "image_size": 28}}), seed=0)
    own = {}
    ARCHITECTURES["llava"].capture_tokens(part, own.__setitem__)
    corners = {(row, column) for row in range(3) for column in range(3)}
    found = set()
    for seed in range(60):
        torch.manual_seed(seed)
        with torch.no_grad():
            ARCHITECTURES["llava"].encode(model, batch)
        for row, column in corners - found:
            state = model.model.vision_tower.state_dict()
            places = [0] + [1 + 4 * (row + r) + column + c for r in range(2) for c in range(2)]
            state["embeddings.position_embedding.weight"] = table[places]
            part.model.vision_tower.load_state_dict(state)
            with torch.no_grad():
                ARCHITECTURES["llava"].encode(part, batch)
            if torch.allclose(own["tokens"], seen["tokens"], atol=1e-6):
                found.add((row, column))
        if found == corners:
            break
    assert found == corners


@pytest.mark.parametrize(("name", "tokens"), [("llava", 9), ("qwen2.5-vl", 4)])
def test_answers_are_learned_from_windows_too(name, tokens):
    model, processor = new_model(NEW[name], seed=0)
    window = {"llava": 3, "qwen2.5-vl": 4}[name]
    batch = Collator(processor, cells=True, window=window)([written(56, 56, "abc"), written(56, 56, "7%")])
    assert ((batch["input_ids"] == processor.image_token_id).sum(1) == tokens).all()
    training_model = TrainingModel(model)
    sums = training_model(**batch)
    assert sums["answer_tokens"] == 3 + 1 + 2 + 1
    sums["answer_loss"].backward()
    assert all(parameter.grad is not None for parameter in model.model.language_model.parameters())
    # Whole images are read as before.
    whole = Collator(processor)(EXAMPLES)
    fresh = new_model(NEW[name], seed=0)[0]
    with torch.no_grad():
        expected, found = (each.model(**_inputs(whole)).last_hidden_state for each in (fresh, model))
    assert torch.equal(found, expected)


def _inputs(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def test_a_window_is_a_number_of_pixels_where_sizes_are_free():
    model, processor = new_model(NEW["qwen2.5-vl"], seed=0)
    collate = Collator(processor, answers=False, cells=True, window=8)
    batch = collate([written(56, 56, "abc"), written(56, 14, "7%"), written(200, 200, "x")])
    grids = batch["image_grid_thw"][:, 1:].tolist()
    assert grids[0] == grids[2] == [8, 8]
    assert grids[1] == [4, 16]
    assert len(batch["cells"]) == (64 + 64 + 64) // 4
    ARCHITECTURES["qwen2.5-vl"].encode(model, batch)


def test_windows_are_refused_where_recipes_choose_sizes():
    _, processor = new_model(NewModel(vision=VISION, text=TEXT), seed=0)
    with pytest.raises(FoveateError, match="`window` is for llava, qwen2.5-vl; leave it out for llava-uhd"):
        Collator(processor, answers=False, window=2)


def test_neighbours_have_similar_positions_from_the_start():
    new = NewModel(**{**vars(NEW["llava"]), "vision": {**CLIP, "hidden_size": 64, "image_size": 140}})
    table = new_model(new, seed=0)[0].model.vision_tower.embeddings.position_embedding.weight[1:].view(10, 10, 64)
    near = torch.nn.functional.cosine_similarity(table[4, 4], table[4, 5], dim=0)
    far = torch.nn.functional.cosine_similarity(table[4, 4], table[9, 0], dim=0)
    assert near > 0.9 > far
    shifted = torch.nn.functional.cosine_similarity(table[7, 2], table[7, 3], dim=0)
    torch.testing.assert_close(near, shifted)
