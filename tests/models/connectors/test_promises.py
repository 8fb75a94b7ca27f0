"""What every registered connector promises; a new one is tested as soon as it is registered."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import suppress

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors import Connector, all_connectors, build_connector, register_connector
from foveate.models.connectors.packed import connect_packed
from foveate.models.connectors.registry import connector_of_sizes, unregister_connector
from tests.models.connectors.small_options import options_of
from tests.models.llava.small_llava import small_batch, small_llava, small_processor

WIDTH, TEXT_WIDTH, LAYERS, PROMPT = 24, 32, 4, 5
#: Grids that are square, wide, tall and small; all are multiples of 6 or refused.
GRIDS = [Grid(6, 6), Grid(6, 12), Grid(12, 6), Grid(5, 7), Grid(2, 2)]


@pytest.fixture(params=list(all_connectors()))
def connector(request) -> Connector:
    """Every connector, with weights of a large spread, so that outputs depend on every input."""
    torch.manual_seed(0)
    made = build_connector(request.param, WIDTH, TEXT_WIDTH, **options_of(request.param)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


def features_of(connector: Connector, grid: Grid, batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Features of a batch of images, and text for connectors that read it."""
    generator = torch.Generator().manual_seed(seed)
    layers = connector.feature_layers(LAYERS)
    shape = (batch, grid.size, len(layers), WIDTH) if layers else (batch, grid.size, WIDTH)
    features = torch.randn(shape, generator=generator)
    return features, torch.randn(batch, PROMPT, TEXT_WIDTH, generator=generator)


def run(connector: Connector, grid: Grid, budget: int | None = None, batch: int = 3) -> tuple[torch.Tensor, Grid]:
    features, text = features_of(connector, grid, batch)
    return connector(features, grid, budget, text if connector.reads_text else None)


def possible_grids(connector: Connector) -> list[Grid]:
    """The grids that the connector does not refuse."""
    grids = []
    for grid in GRIDS:
        with suppress(FoveateError):
            connector.output_grid(grid)
            grids.append(grid)
    return grids


def budgets(connector: Connector, grid: Grid) -> list[int | None]:
    """No budget, and for nested connectors every number of tokens that is possible."""
    found: list[int | None] = [None]
    for count in range(1, grid.size + 1) if connector.nested else ():
        with suppress(FoveateError):
            connector.output_grid(grid, count)
            found.append(count)
    return found


def middle_length(connector: Connector, grid: Grid) -> int | None:
    """A length of a nested connector that is, if possible, neither one token of all patches nor one of every patch."""
    lengths = budgets(connector, grid)
    return lengths[len(lengths) // 2]


def test_identity(connector):
    cls = type(connector)
    assert cls.title and (cls.paper == "" or cls.paper.startswith("arXiv "))
    assert inspect.getdoc(cls) and inspect.getdoc(cls.options_class)
    assert dataclasses.is_dataclass(cls.options_class) and cls.options_class.__dataclass_params__.frozen


def test_shapes_and_output_grid_agree(connector):
    grids = possible_grids(connector)
    assert Grid(6, 6) in grids, "the tests below use 6 x 6 patches: add options to small_options.py"
    for grid in grids:
        for budget in budgets(connector, grid):
            tokens, output = run(connector, grid, budget)
            assert output == connector.output_grid(grid, budget)
            assert tokens.shape == (3, output.size, TEXT_WIDTH)
            assert budget is None or output.size == budget
            assert connector.spatial or output.rows == 1


def test_a_grid_is_read_or_refused_in_one_sentence(connector):
    for grid in set(GRIDS) - set(possible_grids(connector)):
        with pytest.raises(FoveateError) as error:
            run(connector, grid)
        message = str(error.value)
        assert connector.name in message or f"{grid.rows} x {grid.columns}" in message
        assert message.endswith(".") and ". " not in message


def test_rows_are_not_columns(connector):
    """A transposed image gives other tokens than a wide one with the same features in the same order."""
    if not {Grid(6, 12), Grid(12, 6)} <= set(possible_grids(connector)):
        pytest.skip("grids that are not square are refused")
    if connector.per_token:
        pytest.skip("tokens depend on no neighbour")
    wide, tall = run(connector, Grid(6, 12))[1], run(connector, Grid(12, 6))[1]
    budget = middle_length(connector, Grid(6, 12))
    first, second = (run(connector, grid, budget)[0] for grid in (Grid(6, 12), Grid(12, 6)))
    assert (wide.rows, wide.columns) == ((tall.columns, tall.rows) if connector.spatial else tall)
    assert not torch.allclose(first, second, atol=1e-3)


def test_sizes_need_no_weights(connector):
    sizes = connector_of_sizes(connector.name, options_of(connector.name))
    assert not list(sizes.parameters())
    assert sizes.multiple == connector.multiple
    assert sizes.feature_layers(LAYERS) == connector.feature_layers(LAYERS)
    for grid in possible_grids(connector):
        for budget in budgets(connector, grid):
            assert sizes.output_grid(grid, budget) == connector.output_grid(grid, budget)


def test_every_item_of_a_batch_alone_equals_the_batch(connector):
    features, text = features_of(connector, Grid(6, 6))
    text = text if connector.reads_text else None
    for budget in budgets(connector, Grid(6, 6)):
        together, _ = connector(features, Grid(6, 6), budget, text)
        for item in range(len(features)):
            own = None if text is None else text[item : item + 1]
            alone, _ = connector(features[item : item + 1], Grid(6, 6), budget, own)
            torch.testing.assert_close(alone[0], together[item], atol=1e-5, rtol=1e-5)


def test_packed_images_of_several_sizes_equal_each_alone(connector):
    grids = [*possible_grids(connector), Grid(6, 6)]
    images = [features_of(connector, grid, 1, seed) for seed, grid in enumerate(grids)]
    text = torch.cat([text for _, text in images]) if connector.reads_text else None
    packed = torch.cat([features[0] for features, _ in images])
    tokens, outputs = connect_packed(connector, packed, torch.tensor(grids), text=text)
    for place, ((features, own), grid) in enumerate(zip(images, grids, strict=True)):
        alone, output = connector(features, grid, text=own if connector.reads_text else None)
        torch.testing.assert_close(tokens[place], alone[0], atol=1e-5, rtol=1e-5)
        assert Grid(*outputs[place].tolist()) == output


def test_gradients_reach_every_parameter_and_the_features(connector):
    features, text = features_of(connector, Grid(6, 6))
    features.requires_grad_()
    budget = middle_length(connector, Grid(6, 6))
    tokens, _ = connector(features, Grid(6, 6), budget, text if connector.reads_text else None)
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert features.grad is not None and bool(features.grad.ne(0).any(-1).all())
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_bfloat16(connector):
    wide, _ = run(connector, Grid(6, 6))
    features, text = features_of(connector, Grid(6, 6))
    text = text.bfloat16() if connector.reads_text else None
    tokens, _ = connector.bfloat16()(features.bfloat16(), Grid(6, 6), text=text)
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), wide, atol=0.15 * float(wide.detach().abs().max()), rtol=0.1)


def test_a_budget_is_for_nested_connectors_alone(connector):
    if not connector.nested:
        with pytest.raises(FoveateError, match=f"{connector.name} takes no budget"):
            run(connector, Grid(6, 6), 4)
        return
    assert len(budgets(connector, Grid(6, 6))) > 2
    for impossible in (0, -1, 37):
        with pytest.raises(FoveateError):
            run(connector, Grid(6, 6), impossible)


def test_lengths_of_training_are_possible(connector):
    lengths = connector.training_lengths(Grid(6, 6))
    assert connector.nested == bool(lengths) == (connector.length_schedule in ("all", "sampled"))
    assert list(lengths) == sorted(set(lengths))
    for length in lengths:
        assert connector.output_grid(Grid(6, 6), length).size == length


def test_unknown_options_are_refused_with_what_is_possible(connector):
    with pytest.raises(FoveateError, match=f"{connector.name} has no option spokes; ") as error:
        build_connector(connector.name, WIDTH, TEXT_WIDTH, spokes=3)
    for field in dataclasses.fields(connector.options_class):
        assert field.name in str(error.value)


def test_features_that_do_not_fit_the_grid_are_refused(connector):
    features, text = features_of(connector, Grid(6, 6))
    text = text if connector.reads_text else None
    for wrong in (features[:, :-1], features[0], features.unsqueeze(-1)):
        with pytest.raises(FoveateError, match="36 patches"):
            connector(wrong, Grid(6, 6), text=text)


def test_text_is_read_or_refused(connector):
    features, text = features_of(connector, Grid(6, 6))
    with pytest.raises(FoveateError, match="text"):
        connector(features, Grid(6, 6), text=None if connector.reads_text else text)


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_in_a_llava_it_generates_saves_and_loads(connector, encoder, tmp_path):
    name, options = connector.name, options_of(connector.name)
    model, processor = small_llava(name, encoder, **options), small_processor(name, encoder, **options)
    batch = small_batch(processor)
    output = connector.output_grid(Grid(6, 6)).size
    assert (batch["input_ids"] == 259).sum(-1).tolist() == [2 * output, output]
    generated = model.generate(**batch, max_new_tokens=4, do_sample=False)
    uncached = model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(generated, uncached)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.connector_type == name
    assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)
    assert torch.equal(small_batch(reader)["input_ids"], batch["input_ids"])


def test_names_and_registration():
    class Mine(type(build_connector("mlp", 4, 4))):
        name = "mine"

    with pytest.raises(FoveateError, match="there is no connector 'mine'; possible are average, "):
        build_connector("mine", 4, 4)
    register_connector(Mine)
    try:
        assert isinstance(build_connector("mine", 4, 4), Mine)
        Mine.name = "mlp"
        with pytest.raises(FoveateError, match="'mlp' is taken"):
            register_connector(Mine)
    finally:
        unregister_connector("mine")
    with pytest.raises(FoveateError, match="no connector 'mine' was registered"):
        unregister_connector("mine")
    with pytest.raises(FoveateError, match="is no connector"):
        register_connector(torch.nn.Linear)


def test_authors_names_cover_every_weight(connector):
    if not connector.released_types:
        pytest.skip("there are no checkpoints of authors")
    assert connector.released_options({}) is None or isinstance(connector.released_options({}), dict)
    targets = [
        name for target in connector.released_keys.values() for name in (target if type(target) is tuple else [target])
    ]
    for name in connector.state_dict():
        assert sum(name.startswith(target) for target in targets) == 1, name
