"""Arguments that a plan may have and nobody means: an answer or one sentence, no failure and no memory without end."""

import pytest
import torch
from PIL import Image

from foveate import FoveateError, ask, load
from foveate.answering import answer_batch
from foveate.core.plan import Plan
from foveate.methods.pre_llm.divprune import DivPrune
from foveate.runtime import compress
from tests.families.zoo import zoo
from tests.tiny_model import save_llava

HUGE = 10**18
PICTURE = {"type": "image", "image": Image.effect_noise((40, 32), 80).convert("RGB")}
ASKED = [[{"role": "user", "content": [PICTURE, {"type": "text", "text": "Which?"}]}]]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.mark.parametrize("name", ["random", "random-decoder", "zipvl"])
@pytest.mark.parametrize("seed", [-HUGE, HUGE, 2**63 - 1])
def test_any_seed_is_one(llava, name, seed):
    model, processor = llava
    with compress(model, f"{name}(seed={seed})" + (":50%" if name != "zipvl" else "")):
        first = answer_batch(model, processor, ASKED, 2)
        assert answer_batch(model, processor, ASKED, 2) == first


@pytest.mark.parametrize("plan", [f"ppe(members={HUGE}):5", "ppe(members=1025):5", "fastv:50%@" + "9" * 30])
def test_what_would_take_all_memory_is_refused(llava, plan):
    with pytest.raises(FoveateError), compress(llava[0], plan):
        answer_batch(*llava, ASKED, 2)


@pytest.mark.parametrize("plan", [f"divprune:{HUGE}", "divprune:0.0000001%", f"ppe(neighbours={HUGE}):5"])
def test_what_is_only_large_is_answered(llava, plan):
    model, processor = llava
    with compress(model, plan):
        assert len(answer_batch(model, processor, ASKED, 2)) == 1


def test_a_budget_beside_a_plan_is_used_or_refused() -> None:
    model = zoo()["llava"].model()
    for plan in ("divprune", DivPrune()):
        with compress(model, plan, 3) as handle:
            assert str(handle.plan) == "divprune:3"
        with pytest.raises(FoveateError, match="divprune needs a budget"):
            compress(model, plan)
    with pytest.raises(FoveateError, match="has a budget"):
        compress(model, "divprune:25%", 0.5)
    with pytest.raises(FoveateError, match="needs a plan, such as"):
        ask("no.png", "What?", budget=3)


@pytest.mark.parametrize(
    ("plan", "options", "words"),
    [
        ("recoverable(visual=0.2)", {}, "recoverable: visual means something with a budget alone"),
        ("prumerge+(share=0.5)", {}, "share means something with a budget alone"),
        ("sparsevlm(rank_scale=0.7):50%@1", {}, "rank_scale means something without a budget alone"),
        ("divprune:3", {"text_features": torch.ones(8)}, "compares nothing with text_features"),
        ("cdpruner:3", {"text_features": torch.ones(8)}, "compares nothing with text_features"),
        ("cdpruner(relevance=text):3", {"text_features": [0.5]}, r"\(prompts, d\) or \(d,\), not list"),
        ("cdpruner(relevance=text):3", {"text_features": torch.ones(0, 8)}, r"not \(0, 8\)"),
        (Plan(()), {}, "a plan is empty"),
        ("divprune:3", {"positions": "renumbered"}, "'original' or 'contiguous', not 'renumbered'"),
        ("pospad(marker=mean, embedding='a.safetensors'):3", {}, "marker or embedding, one of the two"),
        ("todre(pivot=center, layer=1):3", {}, "pivot=center reads none"),
        ("focusui(weights='a.safetensors', seed=3):3", {}, "give shuffle=True with it"),
    ],
)
def test_arguments_that_would_do_nothing_are_refused(plan: str | Plan, options: dict, words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        compress(zoo()["llava"].model(), plan, **options)


def test_text_features_are_those_of_the_prompts_of_a_batch() -> None:
    specimen = zoo()["llava"]
    model = specimen.model()
    width = model.config.vision_config.hidden_size
    inputs = specimen.prompts(model, [((3, 4),), ((3, 4),), ((3, 4),)])
    with (
        compress(model, "cdpruner(relevance=text):3", text_features=torch.randn(2, width)),
        pytest.raises(FoveateError, match="of 2 prompts, and this batch has 3"),
    ):
        model(**inputs)
    features = torch.randn(3, width)
    with compress(model, "cdpruner(relevance=text):3", text_features=features) as handle:
        model(**inputs)
        together = [image.selection.indices.tolist() for image in handle.report().images]
    for row, feature in enumerate(features):
        alone = specimen.prompts(model, [((3, 4),), ((3, 4),), ((3, 4),)])
        with compress(model, "cdpruner(relevance=text):3", text_features=feature) as handle:
            model(**alone)
            assert handle.report().images[row].selection.indices.tolist() == together[row]
