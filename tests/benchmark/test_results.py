"""Reading result files, also those written under earlier names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from foveate.benchmark.results import parse_result, read_results
from foveate.core.full_model import FULL_MODEL, is_full_model

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_earlier_names_are_read_as_current_ones() -> None:
    earlier = {
        "note": "TTFT: without the view. Speed-up: over the untouched model.",
        "rows": [
            {"plan": "untouched", "loyalty": 1.0, "seconds": {"view": 0.5}, "times_untouched": {"ttft": 1.0}},
            {"plan": "divprune:64", "difficult": {"count": 3, "untouched": 1.0}},
        ],
        "measured": {"untouched": {"loss": 1.0}, "divprune:64": {"loss": 2.0}},
    }
    assert parse_result(json.dumps(earlier)) == {
        "note": "TTFT: without preprocessing. Speed-up: over the full model.",
        "rows": [
            {
                "plan": "full model",
                "agreement": 1.0,
                "seconds": {"preprocess": 0.5},
                "times_full_model": {"ttft": 1.0},
            },
            {"plan": "divprune:64", "difficult": {"count": 3, "full_model": 1.0}},
        ],
        "measured": {"full model": {"loss": 1.0}, "divprune:64": {"loss": 2.0}},
    }


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_no_earlier_name_remains_in_a_committed_result(path: Path) -> None:
    result = read_results(path)
    assert not re.search("untouched|loyalty|the view", result.get("note", ""), re.IGNORECASE)
    text = json.dumps({key: value for key, value in result.items() if key not in ("note", "command")})
    assert not [name for name in ("untouched", "loyalty", "view") if f'"{name}"' in text]


@pytest.mark.parametrize("text", ["full model", "full-model", " Full Model "])
def test_the_full_model_can_be_named_with_a_space_or_a_hyphen(text: str) -> None:
    assert is_full_model(text)
    assert is_full_model(FULL_MODEL)
    assert not is_full_model("divprune:64")
