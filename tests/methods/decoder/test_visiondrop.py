"""VisionDrop against a loop from the paper and numbers of the authors' code, its schedule, its bias by causal masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import foveate
from foveate.core.attention import Attention
from foveate.core.errors import FoveateError
from foveate.core.in_decoder import LayerTokens
from foveate.methods.decoder.visiondrop import VisionDrop
from foveate.testing.layer_tokens import changed, layer_tokens
from foveate.testing.live import answers
from tests.methods.decoder.fabricated import of_case, rows_by_hand
from tests.runtime.test_decoder_hooks import deep

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "visiondrop.json").read_text())


def by_the_paper(tokens: LayerTokens, dominant: int, contextual: int) -> dict[int, list[int]]:
    """Members of what stays, by place; the target first."""
    asked = tokens.attention("own")
    weights, places = rows_by_hand(asked), tokens.indices.tolist()
    scores = [sum(head[i][j] for head in weights for i in places) for j in places]
    best = sorted(range(len(places)), key=lambda j: -scores[j])[:dominant]
    rest = [j for j in range(len(places)) if j not in best]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    groups = {j: [j] for j in best + targets}
    keys = [sum(head[place] for head in asked.key) for place in places]
    for j in rest:
        if targets and j not in targets:
            groups[max(targets, key=lambda t: float(torch.cosine_similarity(keys[j], keys[t], dim=0)))].append(j)
    return dict(sorted(groups.items()))


@pytest.mark.parametrize(
    ("size", "count", "share"), [(20, 9, 6 / 7), (31, 14, 0.5), (12, 4, 0.0), (12, 4, 1.0), (9, 8, 0.5)]
)
def test_equals_the_loop(size: int, count: int, share: float) -> None:
    tokens = layer_tokens(size, seed=size)
    dominant = round(share * count)
    groups = by_the_paper(tokens, dominant, count - dominant)
    for reference in (False, True):
        selection = VisionDrop(share, reference)(tokens, count)
        selection.check(size)
        assert selection.indices.tolist() == list(groups)
        read = list(groups.items())
        if reference and dominant < count:  # contextual tokens are read last
            whole = by_the_paper(tokens, dominant, 0)
            read = sorted(read, key=lambda item: (item[0] not in whole, item[0]))
        for row, (target, members) in enumerate(read):
            if dominant == count:
                assert selection.features is None
                continue
            expected = tokens.features[members].mean(dim=0)
            if reference:
                expected = tokens.features[target] + tokens.features[members[1:]].sum(dim=0) / max(1, len(members) - 1)
            torch.testing.assert_close(selection.features[row], expected)
            assert selection.sources(row).tolist() == sorted(members)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["size"]))
def test_equals_the_authors_code(case: dict) -> None:
    tokens, count = of_case(case), case["dominant"] + case["contextual"]
    selection = VisionDrop(case["dominant"] / count, reference=True)(tokens, count)
    expected = torch.tensor(case["dominant_tokens"] + case["contextual_tokens"])
    assert selection.features is not None
    torch.testing.assert_close(selection.features, expected, atol=1e-4, rtol=0)


def test_the_first_tokens_are_seen_by_more() -> None:
    """Where all attention is equal, the score of a token falls strictly with its place, as the paper's code has it."""
    tokens = layer_tokens(9)
    equal = Attention(torch.zeros(4, 15, 3), torch.randn(2, 15, 3), 1.0)
    scores = equal.attention_received(tokens.indices, tokens.indices)
    assert bool((scores[1:] < scores[:-1]).all())
    picked = VisionDrop(share=1.0)(changed(tokens, ask=lambda _: equal), 4)
    assert picked.indices.tolist() == [0, 1, 2, 3]


def test_the_authors_schedule() -> None:
    """42 + 6 before the language model, then 30 + 5, 22 + 4, 16 + 3: 32 on average."""
    from foveate.methods.pre_llm.visionzip import VisionZip

    merge_contextual, dropped = foveate.Plan.of("visionzip(share=0.875):48 + visiondrop:73%").steps
    assert isinstance(merge_contextual.method, VisionZip)
    assert round(merge_contextual.method.share * 48) == 42
    count, found = 48, []
    for _ in dropped.method.layers(32):
        count = dropped.count(count)
        dominant = round(dropped.method.share * count)
        found.append((dominant, count - dominant))
    assert dropped.method.layers(32) == (8, 16, 24)
    assert found == [(30, 5), (22, 4), (16, 3)]
    assert (48 + 35 + 26 + 19) / 4 == 32


@pytest.mark.parametrize("kind", ["llava", "qwen2.5-vl"])
def test_stages_after_visionzip(kind: str) -> None:
    specimen, model = deep(kind)
    rows = (((4, 4),), ((2, 3), (4, 3)), ((4, 5),))
    with foveate.compress(model, "visionzip:10 + visiondrop:70%@2,4") as handle:
        inputs = specimen.prompts(model, rows)
        written = answers(model, inputs)
        images = handle.report().images
        held, counts = ([image.tokens_kept for image in images], [[o.tokens_kept for o in i.layers] for i in images])
        assert answers(model, inputs, use_cache=False) == written
        assert answers(model, specimen.prompts(model, rows[:1]))[0] == written[0]
    for before, kept in zip(held, counts, strict=True):
        assert before == 10 or (kind != "llava" and before == 6)
        assert kept == [round(0.7 * before), round(0.7 * round(0.7 * before))]


def test_a_share_is_a_share() -> None:
    with pytest.raises(FoveateError, match="0 to 1"):
        VisionDrop(share=1.1)
