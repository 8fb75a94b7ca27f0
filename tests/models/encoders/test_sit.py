"""SiT: token slimming, its reverse, and distillation."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageClassification

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.encoders.sit import (
    FRD,
    SiTConfig,
    SiTForImageClassification,
    SiTModel,
    convert_released_state,
    frd_loss,
    initialize_from_teacher,
)
from foveate.models.encoders.sit.configuration import SIZES
from foveate.models.encoders.sit.modeling import ReverseSlimming, TokenSlimming
from tests.models.encoders.operations import built_without_weights, multiplications
from tests.models.encoders.released_sit import FIELDS, pixels, weights
from tests.models.encoders.small_encoders import images, small_config

(GOLDEN,) = json.loads((Path(__file__).parents[2] / "golden" / "sit.json").read_text(encoding="utf-8"))["cases"]


def classifier(**changes: Any) -> SiTForImageClassification:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SiTForImageClassification(small_config("sit", num_labels=5, **changes)).eval()


def released(*, slimming: bool) -> SiTForImageClassification:
    """The student or the teacher of the golden values."""
    config = SiTConfig(**FIELDS, slimming=slimming)
    model = SiTForImageClassification(config).eval()
    result = model.load_state_dict(convert_released_state(weights(slimming=slimming), config), strict=False)
    assert not result.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in result.missing_keys)
    return model


def test_equals_the_authors_code():
    student, teacher = released(slimming=True), released(slimming=False)
    with torch.no_grad():
        ours = student(pixels(), output_hidden_states=True, output_recovered=True)
        theirs = teacher(pixels(), output_recovered=True)
        slimmed = student.encoder(pixels(), output_recovered=False)
        loss = frd_loss(ours, theirs, torch.tensor([1, 4]))
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(ours.logits.flatten(), torch.tensor(GOLDEN["logits"]), **close)
    torch.testing.assert_close(theirs.logits.flatten(), torch.tensor(GOLDEN["teacher_logits"]), **close)
    # The authors return the tokens after the last block, before the last norm.
    last = F.layer_norm(torch.tensor(GOLDEN["slimmed"]).view(2, 2, 32), (32,))
    norm = student.encoder.norm
    torch.testing.assert_close(slimmed.last_hidden_state, last * norm.weight + norm.bias, atol=1e-4, rtol=1e-3)
    for output, expected in ((ours, GOLDEN["recovered"]), (theirs, GOLDEN["teacher_tokens"])):
        for layer, values in zip(output.recovered_tokens, expected, strict=True):
            torch.testing.assert_close(layer[:, 5, ::8].flatten(), torch.tensor(values), **close)
    parts = torch.stack([loss.total, loss.labels, loss.tokens, loss.logits])
    torch.testing.assert_close(parts, torch.tensor(GOLDEN["loss"]), **close)


def test_weights_of_other_networks_are_refused():
    config = SiTConfig(**FIELDS)
    with pytest.raises(FoveateError, match=r"'blocks_0.norm' is no weight of SiT"):
        convert_released_state({"blocks_0.norm": torch.zeros(1)}, config)
    state = {"cls_token": torch.zeros(1, 1, 32), "pos_embed": torch.zeros(1, 10, 32)}
    with pytest.raises(FoveateError, match="positions of 9 patches, and the configuration 16"):
        convert_released_state(state, config)


#: Millions of parameters in the authors' README, of the student and of its teacher. `foveate flops` has its GMACs.
PARAMETERS = {"t": (15.9, 15.7), "xs": (25.6, 25.4), "s": (25.6, 25.4), "m": (55.6, 55.2), "l": (148.2, 147.0)}


@pytest.mark.parametrize("size", SIZES)
def test_parameters_of_the_papers_table(size):
    """They are equal with the auxiliary classifier of the teachers' training, which no forward pass uses."""
    for place, slimming in enumerate((True, False)):
        config = SiTConfig.of_size(size, slimming=slimming, reverse_modules=False, num_labels=1000)
        model = built_without_weights(lambda config=config: SiTForImageClassification(config))
        count = sum(parameter.numel() for parameter in model.parameters()) + 1000 * (config.hidden_size + 1)
        assert abs(count / 1e6 - PARAMETERS[size][place]) < (0.2 if size == "l" else 0.051)


def test_tokens_of_every_stage_of_the_paper():
    assert [SiTConfig.of_size(size).stage_tokens for size in "tsl"] == [[196, 98, 49, 24]] * 2 + [[324, 162, 81, 40]]
    assert SiTConfig.of_size("s").slimmed_after == [9, 12, 14]
    assert SiTConfig.of_size("s").output_grid(224, 224) == Grid(1, 24)
    teacher = SiTConfig.of_size("s", slimming=False)
    assert teacher.output_grid(224, 224) == Grid(14, 14)
    assert teacher.spatial and not SiTConfig.of_size("s").spatial


@pytest.fixture
def slimming():
    torch.manual_seed(0)
    module = TokenSlimming(8, 3, 1e-5).eval()
    with torch.no_grad():
        module.scale.fill_(1.7)
    return module, torch.randn(2, 6, 8)


def test_slimming_equals_a_loop(slimming):
    module, x = slimming
    with torch.no_grad():
        output = module(x)
        for image in range(2):
            logits = [1.7 * module.mlp(module.norm(x[image, token])) for token in range(6)]
            for slot in range(3):
                shares = [float(logit[slot].exp()) for logit in logits]
                mean = sum(share * x[image, token] for token, share in enumerate(shares)) / sum(shares)
                torch.testing.assert_close(output[image, slot], mean, atol=1e-5, rtol=1e-4)


def test_weights_of_a_slot_sum_to_one_over_the_tokens(slimming):
    module, x = slimming
    assert module.weights(x).shape == (2, 6, 3)
    torch.testing.assert_close(module.weights(x).sum(1), torch.ones(2, 3))


def test_slimming_ignores_the_order_of_tokens(slimming):
    module, x = slimming
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(module(x[:, order]), module(x))


def test_equal_tokens_stay_what_they_are(slimming):
    module, x = slimming
    equal = x[:, :1].expand(-1, 6, -1)
    torch.testing.assert_close(module(equal), equal[:, :3])


def test_the_reverse_module_mixes_tokens_without_a_residual():
    torch.manual_seed(0)
    module, x = ReverseSlimming(8, 3, 6, 1e-5), torch.randn(2, 3, 8)
    y = torch.stack([module.token_mlp(channel) for channel in module.norm1(x).unbind(-1)], dim=-1)
    torch.testing.assert_close(module(x), y + module.channel_mlp(module.norm2(y)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert not module(x).any()


def test_reverse_modules_cost_nothing_outside_of_training():
    config = small_config("sit")
    with_reverse = built_without_weights(lambda: SiTModel(config))
    without = built_without_weights(lambda: SiTModel(small_config("sit", reverse_modules=False)))
    assert len(with_reverse.reverse) == 5 and not without.reverse
    assert multiplications(with_reverse, 48, 48) == multiplications(without, 48, 48)
    model = classifier()
    assert model(images()).recovered_tokens is None
    assert model.train()(images()).recovered_tokens is not None
    assert model(images(), **model.config.tower_options()).recovered_tokens is None


def test_the_first_layers_recover_nothing():
    model = classifier(stage_blocks=[2, 1, 2])
    output = model.encoder(images(), output_recovered=True, output_hidden_states=True)
    assert [state.shape[1] for state in output.hidden_states] == [9, 9, 7, 5, 5, 5]
    assert list(model.encoder.reverse) == ["2", "3", "4", "5"]
    assert torch.equal(output.recovered_tokens[0], output.hidden_states[1])
    assert all(tokens.shape == (2, 9, 24) for tokens in output.recovered_tokens)


def test_cls_is_not_slimmed():
    """Where blocks add nothing, [CLS] stays what it is, while tokens become means of others."""
    model = classifier().encoder
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.attention.out_proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
        output = model(images())
        torch.testing.assert_close(output.prefix_tokens, model.norm(model.cls_token(2)))
    assert output.last_hidden_state.shape == (2, 4, 24)


def test_a_student_starts_as_its_teacher():
    teacher, student = classifier(slimming=False), classifier()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1)
    before = student.state_dict()["encoder.slimming.1.mlp.fc1.weight"].clone()
    initialize_from_teacher(student, teacher)
    for key, value in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[key], value), key
    assert torch.equal(student.state_dict()["encoder.slimming.1.mlp.fc1.weight"], before)
    # Before the first slimming they are the same network.
    first = [model.encoder(images(), output_hidden_states=True).hidden_states[0] for model in (student, teacher)]
    torch.testing.assert_close(*first)
    with pytest.raises(FoveateError, match="the teacher is another network than the student, such as in "):
        initialize_from_teacher(student, classifier(slimming=False, intermediate_size=32))


def test_distillation_equals_its_parts_and_leaves_the_teacher_alone():
    teacher, student, labels = classifier(slimming=False), classifier(initializer_range=0.1), torch.tensor([0, 3])
    options = {"output_recovered": True}
    ours, theirs = student(images(), **options), teacher(images(), **options)
    loss = frd_loss(ours, theirs, labels, FRD(tokens=3.0, logits=0.5, temperature=2.0))
    errors = [(ours.recovered_tokens[layer] - theirs.recovered_tokens[layer]) ** 2 for layer in range(5)]
    expected = sum(error.mean() for error in errors)
    torch.testing.assert_close(loss.tokens, 3 * expected / 5)
    target = (theirs.logits / 2).softmax(-1)
    divergence = (target * (target.log() - (ours.logits / 2).log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(loss.logits, 0.5 * 4 * divergence, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(loss.labels, student(images(), labels).loss)
    loss.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())
    same = frd_loss(theirs, theirs, labels)
    assert float(same.tokens.detach()) == float(same.logits.detach()) == 0


def test_bad_distillation():
    teacher, student, labels = classifier(slimming=False), classifier(), torch.tensor([0, 3])
    output = student(images(), output_recovered=True)
    with pytest.raises(FoveateError, match="output of the teacher lacks recovered_tokens"):
        frd_loss(output, teacher(images()), labels)
    with pytest.raises(FoveateError, match="must be the same network without slimming"):
        frd_loss(output, teacher(images(side=64), output_recovered=True), labels)
    for wrong in ({"tokens": -1.0}, {"temperature": 0.0}):
        with pytest.raises(FoveateError, match="must not be negative"):
            replace(FRD(), **wrong)


def test_a_student_learns_its_teachers_tokens():
    """Forty steps on fixed images halve the error of the recovered tokens."""
    teacher, student = classifier(slimming=False), classifier()
    initialize_from_teacher(student, teacher)
    labels, batch = torch.tensor([0, 3, 1, 2]), images(4)
    with torch.no_grad():
        target = teacher(batch, output_recovered=True)
    student.train()
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = frd_loss(student(batch), target, labels)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.tokens.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_classifier_is_saved_and_loaded(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(again) is SiTForImageClassification
    assert torch.equal(again(images()).logits, model(images()).logits)


def test_other_sizes_give_as_many_tokens():
    model = copy.deepcopy(classifier())
    assert model.encoder(images(side=96)).last_hidden_state.shape == (2, 4, 24)
    assert model.train()(images(side=96)).recovered_tokens is None  # there are no N tokens to recover
    with pytest.raises(FoveateError, match="sit makes 7 tokens of the patches of an image, and this one has only 4"):
        model(images(side=32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_blocks": [1, 1, 1]}, "must be num_hidden_layers, 5, and of .* it is 3"),
        ({"stage_blocks": [0, 5]}, "stage_blocks of the encoder sit must be a list of whole numbers from 1 on"),
        ({"keeping_ratio": 0.0}, "keeping_ratio of sit must be above 0"),
        ({"keeping_ratio": 0.3}, "leaves no token of 9 patches after 4 stages"),
        ({"num_attention_heads": 5}, "5 heads of sit do not divide its width 24"),
        ({"hidden_size": 20}, "a width that is a multiple of 8"),
        ({"stem_convolutions": 5}, "must be 4 or 6"),
        ({"patch_size": 8}, "patch_size of sit must be 16"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(FoveateError, match=message):
        small_config("sit", **changes)


def test_unknown_sizes():
    with pytest.raises(FoveateError, match="no SiT of size 'xl'; possible are t, xs, s, m, l"):
        SiTConfig.of_size("xl")
