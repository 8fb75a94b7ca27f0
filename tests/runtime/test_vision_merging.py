"""Merging inside live CLIP and SigLIP towers."""

import copy
import threading

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

import foveate
from foveate.core.bipartite import Tokens, key_bias
from foveate.core.errors import FoveateError
from foveate.core.unmerging import sequence_groups
from foveate.methods.encoder.dymu import DyMU
from foveate.methods.encoder.tome import ToMe
from foveate.methods.encoder.transforming import TokenTransforming
from foveate.runtime.virtual_unmerging import virtual_unmerging
from foveate.runtime.vision_merging import calibrate, merging
from tests.families.zoo import zoo
from tests.refusals import refused

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 48,
    "patch_size": 8,
}
PATCHES = 36


@pytest.fixture(params=["clip", "siglip"])
def tower(request):
    torch.manual_seed(1)
    if request.param == "clip":
        model = CLIPVisionModel(CLIPVisionConfig(**SIZES))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
    for parameter in model.parameters():  # far from the start of training, where attention is nearly even
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 48, 48)


def run(tower, pixels):
    with torch.no_grad():
        return tower(pixels, output_hidden_states=True)


def patches(tower, hidden):
    return hidden[:, 1:] if isinstance(tower, CLIPVisionModel) else hidden


def loop(tower, pixels, method, count):
    """The last block but one of a tower that merges, with the rows short and nothing else shared with the adapter."""
    cls = isinstance(tower, CLIPVisionModel)
    x = tower.embeddings(pixels)
    if cls:
        x = tower.pre_layrnorm(x)
    tokens = Tokens.start(x)
    steps = method.steps(x.shape[1] - cls, 3, cls=cls, count=count)
    for layer, step in zip(tower.encoder.layers, steps, strict=False):
        y = layer.layer_norm1(tokens.x)
        q, k, v = (
            getattr(layer.self_attn, name)(y).view(*y.shape[:2], 4, 8).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        weights = (q @ k.transpose(2, 3) / 8**0.5 + key_bias(tokens.size)).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        tokens = tokens._replace(x=tokens.x + layer.self_attn.out_proj(y))
        if step is not None:
            tokens = step(tokens, k.mean(1))
        tokens = tokens._replace(x=tokens.x + layer.mlp(layer.layer_norm2(tokens.x)))
    return torch.stack([row[where] for row, where in zip(tokens.x, tokens.source, strict=True)])


@pytest.mark.parametrize(
    ("method", "count"),
    [(ToMe(), 10), (ToMe(r=6, inflect=-1), None), (TokenTransforming(), 7), (DyMU((0.6, 0.7, 0.8)), None)],
    ids=["tome", "tome-r", "token-transforming", "dymu"],
)
def test_the_tower_computes_what_the_method_says(tower, pixels, method, count):
    with torch.no_grad(), merging(tower, method, count, output_layer=-2) as active:
        hidden = run(tower, pixels).hidden_states[-2]
        torch.testing.assert_close(hidden, loop(tower, pixels, method, count), atol=1e-4, rtol=1e-4)
    for image, selection in enumerate(active.selections):
        selection.check(PATCHES)
        if count:
            assert len(selection) == count
        assert len(selection) < PATCHES
        assert selection.assignment.bincount().sum() == PATCHES and selection.assignment.bincount().min() > 0
        features = patches(tower, hidden)[image]
        assert torch.equal(features, features[selection.indices][selection.assignment])
        for row, first in enumerate(selection.indices.tolist()):
            assert int((selection.assignment == row).nonzero()[0]) == first


@pytest.mark.parametrize(
    ("method", "count"),
    [(ToMe(r=0), None), (ToMe(), PATCHES), (TokenTransforming(), 10**6), (DyMU((1.0, 1.0, 1.0)), None)],
    ids=["tome-r", "tome", "token-transforming", "dymu"],
)
def test_merging_nothing_is_the_untouched_tower(tower, pixels, method, count):
    before = run(tower, pixels)
    with merging(tower, method, count, output_layer=-2) as active:
        inside = run(tower, pixels)
    for left, right in zip(before.hidden_states, inside.hidden_states, strict=True):
        assert torch.equal(left, right)
    assert torch.equal(before.pooler_output, inside.pooler_output)
    assert [len(selection) for selection in active.selections] == [PATCHES] * 3


def test_afterwards_the_tower_is_as_it_was(tower, pixels):
    before = run(tower, pixels)
    attributes = [set(vars(layer)) for layer in tower.encoder.layers]
    with merging(tower, ToMe(), 10):
        run(tower, pixels)
    with pytest.raises(FoveateError, match="which leaves 3"), merging(tower, ToMe(), 1):
        run(tower, pixels)
    assert [set(vars(layer)) for layer in tower.encoder.layers] == attributes
    assert not any("forward" in names for names in attributes)
    for left, right in zip(before.hidden_states, run(tower, pixels).hidden_states, strict=True):
        assert torch.equal(left, right)


def test_a_forward_of_somebody_else_comes_back(tower, pixels):
    layer = tower.encoder.layers[0]
    calls = []
    original = layer.forward

    def theirs(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    layer.forward = theirs
    with merging(tower, ToMe(r=0)):
        run(tower, pixels)
    assert vars(layer)["forward"] is theirs and calls == [1]


def test_behind_the_hooks_of_accelerate(tower, pixels):
    hooks = pytest.importorskip("accelerate.hooks")
    with merging(tower, ToMe(), 10):
        expected = run(tower, pixels).hidden_states
    calls = []

    class Hook(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(1)
            return args, kwargs

    for layer in tower.encoder.layers:
        hooks.add_hook_to_module(layer, Hook())
    with merging(tower, ToMe(), 10):
        hidden = run(tower, pixels).hidden_states
    assert len(calls) == 4 and all(torch.equal(*pair) for pair in zip(hidden, expected, strict=True))
    assert run(tower, pixels).hidden_states[1].shape[1] >= PATCHES


def test_in_llava_the_model_around_it_works_unchanged(pixels):
    torch.manual_seed(1)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES).to_dict(),
        text_config={
            "model_type": "llama",
            "vocab_size": 40,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        image_token_id=39,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, *[39] * PATCHES, 5, 6]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels[:1]}
    untouched = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with torch.no_grad():
        with merging(model.model.vision_tower, ToMe(), 9, output_layer=-2) as active:
            output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            (features,) = model.model.get_image_features(pixels[:1]).pooler_output
            assert output.shape == untouched.shape
            (selection,) = active.selections
            assert len(selection) == 9
            torch.testing.assert_close(features, features[selection.indices][selection.assignment])
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), untouched)

        # Virtual unmerging: the language model computes on 9 + 3 rows.
        embeddings = model.get_input_embeddings()(ids)
        embeddings[0, 1 : PATCHES + 1] = features[selection.indices][selection.assignment]
        group = sequence_groups(ids == 39, [selection.assignment])
        assert int(group.max()) + 1 == 12
        with virtual_unmerging(model.model.language_model, group):
            assert model(inputs_embeds=embeddings).logits.shape == (1, PATCHES + 3, 40)


def test_equal_tokens_go_through_as_if_unmerged(tower):
    # Positions off and one patch everywhere: every patch is equal, and merging equal tokens changes nothing, provided
    # that their size counts in attention.
    with torch.no_grad():
        tower.embeddings.position_embedding.weight.zero_()
    pixels = torch.randn(1, 3, 8, 8).repeat(1, 1, 6, 6)
    before = run(tower, pixels)
    for method in (ToMe(), TokenTransforming()):
        with merging(tower, method, 6, output_layer=-2):
            inside = run(tower, pixels)
        torch.testing.assert_close(inside.hidden_states[-2], before.hidden_states[-2], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(inside.hidden_states[-1], before.hidden_states[-1], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(inside.pooler_output, before.pooler_output, atol=1e-4, rtol=1e-4)


def test_blocks_after_the_one_that_is_read_do_not_merge(tower, pixels):
    seen = []
    hook = tower.encoder.layers[-1].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    with merging(tower, ToMe(r=8), output_layer=-2) as active:
        run(tower, pixels)
        assert [len(selection) for selection in active.selections] == [PATCHES - 3 * 8] * 3
    with merging(tower, ToMe(r=6), output_layer=-1) as active:
        run(tower, pixels)
        assert [len(selection) for selection in active.selections] == [PATCHES - 4 * 6] * 3
    hook.remove()
    cls = isinstance(tower, CLIPVisionModel)
    assert seen == [PATCHES - 3 * 8 + cls, PATCHES - 4 * 6 + cls]  # short in both


@pytest.mark.parametrize("method", [ToMe(r=7), DyMU((0.6, 0.7, 0.8))], ids=["tome", "dymu"])
def test_a_batch_is_its_images(tower, pixels, method):
    with merging(tower, method, output_layer=-2) as active:
        together = run(tower, pixels)
        selections = active.selections
        for image in range(3):
            alone = run(tower, pixels[image : image + 1])
            assert torch.equal(active.selections[0].assignment, selections[image].assignment)
            for place in (-2, -1):
                torch.testing.assert_close(
                    alone.hidden_states[place], together.hidden_states[place][image : image + 1], atol=1e-4, rtol=1e-4
                )


def test_a_budget_may_follow_the_image(tower, pixels):
    with merging(tower, ToMe(), lambda patches: patches // 4) as active:
        run(tower, pixels)
        assert len(active.selections[0]) == 9
        tower(torch.randn(1, 3, 64, 64), interpolate_pos_encoding=True)
        assert [len(selection) for selection in active.selections] == [16]


def test_eager_attention_gives_the_same(tower, pixels):
    eager = copy.deepcopy(tower)
    eager.set_attn_implementation("eager")
    outputs = []
    for model in (tower, eager):
        with merging(model, ToMe(), 9, output_layer=-2):
            outputs.append(run(model, pixels).hidden_states[-2])
    assert torch.equal(*outputs)


def test_half_precision(tower, pixels):
    half = copy.deepcopy(tower).bfloat16()
    for method in (ToMe(r=7), TokenTransforming(), DyMU((0.6, 0.7, 0.8))):
        with merging(half, method, 9 if isinstance(method, TokenTransforming) else None, output_layer=-2):
            hidden = run(half, pixels.bfloat16()).hidden_states[-2]
        assert hidden.dtype == torch.bfloat16 and bool(hidden.isfinite().all())


def test_gradients_flow(tower, pixels):
    with merging(tower, ToMe(), 9, output_layer=-2):
        hidden = tower(pixels, output_hidden_states=True).hidden_states[-2]
        patches(tower, hidden).square().mean().backward()
    for layer in tower.encoder.layers[:3]:
        assert layer.self_attn.v_proj.weight.grad.abs().sum() > 0


def test_threads_have_selections_of_their_own(tower, pixels):
    with merging(tower, ToMe(), 9) as active:
        run(tower, pixels[:1])
        found = []
        thread = threading.Thread(target=lambda: (run(tower, pixels), found.append(len(active.selections))))
        thread.start()
        thread.join()
        assert found == [3] and len(active.selections) == 1


def test_calibration_leaves_the_asked_number_on_average(tower):
    batches = [torch.randn(8, 3, 48, 48) * torch.rand(8, 1, 1, 1) for _ in range(3)]
    found = calibrate(tower, batches, 12, output_layer=-2)
    assert len(found.values) == 3 and found.patches == PATCHES and found.images == 24
    assert found.encoder == type(tower).__name__
    counts = []
    with merging(tower, DyMU(found.values), output_layer=-2) as active:
        for batch in batches:
            run(tower, batch)
            counts += [len(selection) for selection in active.selections]
    assert abs(sum(counts) / len(counts) - 12) < 2
    assert len(set(counts)) > 1  # richer images keep more


def test_one_batch_is_met_exactly(tower):
    # The threshold of a single batch lies just below its last merge, so that the same batch merges as it did.
    batch = torch.randn(6, 3, 48, 48)
    found = calibrate(tower, [batch], 15, output_layer=-2)
    with merging(tower, DyMU(found.values), output_layer=-2) as active:
        run(tower, batch)
        assert sum(len(selection) for selection in active.selections) == 6 * 15


def test_bad_input(tower, pixels):
    with refused("needs-plain-encoder"), merging(ViTModel(ViTConfig(**SIZES)), ToMe(), 9):
        pass
    with merging(tower, ToMe(), 9) as active:
        with pytest.raises(FoveateError, match="has not read an image"):
            _ = active.selections
        with refused("attached-already"), merging(tower, ToMe(), 9):
            pass
        run(tower, pixels)
    with merging(tower, ToMe()), pytest.raises(FoveateError, match="needs a budget"):
        run(tower, pixels)
    with pytest.raises(FoveateError, match="there are none"):
        calibrate(tower, [], 9)
    with pytest.raises(FoveateError, match="not 40"):
        calibrate(tower, [pixels], 40)
    with pytest.raises(FoveateError, match="4 blocks"), merging(tower, ToMe(), 9, output_layer=-6):
        pass


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
@pytest.mark.parametrize("rows", [(((3, 4),), ((2, 3), (4, 3))), (((7, 9),), ((9, 7), (12, 8)))])
def test_tiles_merge_each_by_itself(name, rows):
    """A token stands for the patches that its tile merged into its row; newlines stay; padding is nothing's member."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), rows)
    with torch.no_grad(), foveate.compress(model, "tome:50%") as handle:
        model(**inputs)
        images, merged = handle.report().images, handle._encoder.merging.selections
        call = {n: inputs[n] for n in ("pixel_values", "image_sizes", "batch_num_images") if n in inputs}
        packed = model.model.get_image_features(**call).pooler_output
        tiles = handle.family._tiles(model.model, call)
    start = 0
    for image, features, count in zip(images, packed, tiles, strict=True):
        own, separators = image.selection, image.layout.separators
        own.check(image.tokens_in)
        interpolated = own.weights is not None
        assert interpolated == (name == "llava-onevision" and count > 3)
        rows_of_tiles = [part.members(16) + 16 * tile for tile, part in enumerate(merged[start : start + count])]
        assert own.assignment[:16].unique(return_inverse=True)[1].equal(rows_of_tiles[0].unique(return_inverse=True)[1])
        for place in separators.nonzero().flatten().tolist():
            assert int((own.assignment == own.assignment[place]).sum()) == 1
        if not interpolated:
            torch.testing.assert_close(features, features[own.indices][own.assignment], atol=1e-5, rtol=1e-5)
            reference = torch.cat(rows_of_tiles).unique()
            assert len(own) - int(separators.sum()) <= len(reference)
        start += count


def test_what_tiles_and_clips_cannot_be_is_refused():
    specimen = zoo()["llava-next"]
    with refused("needs-fraction-for-tiles"):
        foveate.compress(specimen.model(), "tome:3")
    specimen = zoo()["llava-onevision"]
    model = specimen.model()
    clip = {"pixel_values_videos": torch.zeros(1, 2, 3, 56, 56), "input_ids": torch.tensor([[*[118] * 9, 5]])}
    with foveate.compress(model, "tome:50%"), refused("needs-one-token-per-patch"):
        model(**clip)
    large = specimen.prompts(model, (((9, 7),),))
    thresholds = (0.3, 0.3, 0.2, 0.2)
    with foveate.compress(model, f"dymu(thresholds={thresholds})"), pytest.raises(FoveateError, match="interpolates"):
        model(**large)
    with foveate.compress(model, f"dymu(thresholds={thresholds}, virtual=False)") as handle, torch.no_grad():
        model(**large)
        assert handle.report().tokens_kept < handle.report().tokens_in


@pytest.mark.parametrize("name", ["llava", "llava-next"])
def test_geometry_is_checked_when_a_plan_is_attached(name):
    for fields, plans, code in (
        (
            {"vision_feature_select_strategy": "full"},
            ("divprune:3", "downsample:50%", "tome:50%"),
            "needs-plain-patches",
        ),
        ({"vision_feature_layer": [-2, -3]}, ("tome:50%", "token-transforming:50%"), "needs-one-encoder-output"),
    ):
        config = copy.deepcopy(zoo()[name].model().config)
        for field, value in fields.items():
            setattr(config, field, value)
        model = type(zoo()[name].model())(config).eval()
        for plan in plans if name == "llava" else plans[::2]:
            with refused(code):
                foveate.compress(model, plan)
    config.vision_feature_layer = -2
    config.vision_config = zoo()["llava-siglip"].model().config.vision_config
    with refused("needs-plain-patches"):
        foveate.compress(type(model)(config), "divprune:3")


@pytest.mark.parametrize("virtual", [True, False])
@pytest.mark.parametrize("name", ["llava", "llava-next", "llava-onevision"])
def test_dymu_in_a_plan(name: str, virtual: bool) -> None:
    """With virtual unmerging the sequence keeps its length, without it the language model reads merged tokens only."""
    specimen = zoo()[name]
    model, inputs = specimen.model(), specimen.prompts(specimen.model(), [((1, 1),), ((1, 1), (1, 1))])
    thresholds = (0.3, 0.3, 0.2, 0.2) if name == "llava-onevision" else (0.3, 0.3, 0.2)
    plan = f"dymu(thresholds={thresholds}, virtual={virtual})"
    with torch.no_grad(), foveate.compress(model, plan) as handle:
        assert str(handle.plan) == str(foveate.Plan.of(str(handle.plan)))
        out = model(**inputs).logits
        report = handle.report()
        assert all(step.tokens_kept < step.tokens_in for image in report.images for step in image.steps)
        assert not report.inert and (report.tokens_kept == report.tokens_in) == virtual
        assert (out.shape[1] == inputs["input_ids"].shape[1]) == virtual
        tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
        again = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=False)
        assert torch.equal(tokens, again)
        beams = model.generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False, pad_token_id=0)
        assert beams.shape == tokens.shape
    with refused("wrong-order"):
        foveate.compress(model, "dymu(thresholds=(0.3, 0.3, 0.2)) + divprune:2")
