"""Arguments that a plan may have and nobody means: an answer or one sentence, no failure and no memory without end."""

import pytest
from PIL import Image

from families.zoo import zoo
from foveate import FoveateError, ask, load
from foveate.answering import answer_batch
from foveate.runtime import compress
from foveate.selection.divprune import DivPrune
from tiny_model import save_llava

HUGE = 10**18
PICTURE = {"type": "image", "image": Image.effect_noise((40, 32), 80).convert("RGB")}
ASKED = [[{"role": "user", "content": [PICTURE, {"type": "text", "text": "Which?"}]}]]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.mark.parametrize("name", ["random", "random-at", "zipvl"])
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
    with pytest.raises(FoveateError, match="needs a plan that it is the budget of"):
        ask("no.png", "What?", budget=3)
