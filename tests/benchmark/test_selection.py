"""The benchmark of selection, on a small model of a real class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from families.zoo import zoo
from foveate import FoveateError
from foveate.benchmark import selection
from foveate.benchmark.selection import SHAPES, Settings, Shape, plot, run, table


def _inputs(text: int) -> dict[str, Any]:
    inputs = zoo()["llava"].prompts(None, [((1, 1),)])
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == 119, 151655)
    return inputs


def _model(text: dict[str, Any]) -> Any:
    model = zoo()["llava"].make()
    model.config.image_token_id = 151655
    model.resize_token_embeddings(151656)
    return model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", Shape("small", _model, _inputs, ("4", "8")))


@pytest.mark.usefixtures("small")
def test_a_run_compares_every_method_with_random_tokens(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    settings = Settings(("small",), ("random", "divprune", "globalcom2"), repeats=1, dtype="float32")
    lines: list[str] = []
    result = run(settings, path, report=lines.append)
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    rows = {(row["method"], row["budget"]): row for row in result["rows"]}
    assert {budget for _, budget in rows} == {"4", "8"}
    for budget in ("4", "8"):
        assert rows["untouched", budget]["tokens"] == 16
        assert rows["untouched", budget]["speed_up"] == 1
        assert rows["random", budget]["tokens"] == rows["divprune", budget]["tokens"] == int(budget)
        assert rows["random", budget]["efficiency"] == 1
        chance, own = rows["random", budget]["seconds"]["total"], rows["divprune", budget]["seconds"]["total"]
        assert rows["divprune", budget]["efficiency"] == chance / own
        assert 0 < rows["divprune", budget]["seconds"]["selection"] < own
    assert len(table(result)[1]) == len(rows)
    plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert run(settings, path, resume=True)["rows"] == result["rows"]
    with pytest.raises(FoveateError, match="other settings"):
        run(Settings(("small",), repeats=2, dtype="float32"), path, resume=True)


def test_shapes_have_the_sizes_that_they_are_named_after() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in SHAPES["llava-1.5"].build(selection.TEXTS["qwen2-0.5b"]).parameters()) > 7e8
    assert int((SHAPES["llava-next"].inputs(4)["input_ids"] == 151655).sum()) == 576 + 48 * 49
    assert int((SHAPES["qwen2.5-vl"].inputs(4)["input_ids"] == 151655).sum()) == 36 * 36


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(FoveateError, match="shapes .*nothing.* are not known; possible are llava-1.5"):
        Settings(("nothing",))
    with pytest.raises(FoveateError, match="methods .*magic.* are not known"):
        Settings(methods=("magic",))
    with pytest.raises(FoveateError, match="at least one shape"):
        Settings(repeats=0)
