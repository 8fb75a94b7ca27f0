"""What the app shows, without a browser: the token under a click, bars, lines of code, methods to choose."""

import ast
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import Plan, ask, load
from foveate.answering.selections import selected
from foveate.app.bars import Bar, as_html, time_bars, token_bars
from foveate.app.by_hand import ByHand
from foveate.app.cards import answers
from foveate.app.choices import Choice, choices, samplers, settings_of, with_frames
from foveate.app.comparison import Contender
from foveate.app.lines import python_line, shell_line
from foveate.app.session import opened_clip, reads_clips
from foveate.app.views import clip_views, fact, legend_of, outlined, views
from foveate.core.errors import FoveateError
from foveate.core.tokens import Crop, Grid, Need, Selection, merge_tokens
from foveate.families import ImageLayout
from foveate.runtime import handle_of
from foveate.runtime.report import ImageReport, LayerReport
from foveate.visualization.canvas import ACCENT
from foveate.visualization.selection import draw_tokens, joined, token_map
from tests.tiny_model import noise, save_llava, save_llava_uhd, save_qwen
from tests.video_files import save_frames


@pytest.fixture(scope="module")
def uhd(tmp_path_factory):
    return load(save_llava_uhd(tmp_path_factory.mktemp("uhd")))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return load(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return load(save_qwen(tmp_path_factory.mktemp("qwen")))


def report_of(count, crops, selection, **fields):
    return selected(ImageReport(0, "image", 0, ImageLayout(count, tuple(crops)), selection, (), **fields))


def crop_of(rows, columns, start=0, **fields):
    return Crop(torch.arange(start, start + rows * columns), Grid(rows, columns), **fields)


def painted(rows, columns, row, column, size):
    """A white image with one black cell of a grid."""
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    top, bottom = size[1] * row // rows, size[1] * (row + 1) // rows
    pixels[top:bottom, size[0] * column // columns : size[0] * (column + 1) // columns] = 0
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 3), (4, 6), (4, 0)])
def test_a_click_on_a_painted_cell_names_its_token(row, column):
    image = painted(5, 7, row, column, (700, 300))
    document = report_of(35, [crop_of(5, 7)], Selection(torch.arange(35)))  # all stay: the picture is the image
    picture = draw_tokens(document, image, (350, 350))
    tokens = token_map(document, picture.size)
    assert tokens.shape == (picture.height, picture.width)
    dark = np.asarray(picture.convert("L")) < 90
    inner = dark & (tokens == row * 7 + column)
    assert inner.sum() > 0.95 * dark.sum()
    assert dark[tokens == row * 7 + column].mean() > 0.95


def test_tiles_lie_where_they_are_and_padding_has_no_token():
    left = crop_of(2, 2, 0, kind="tile", box=(0, 0, 0.5, 1))
    right = Crop(torch.tensor([4, 5, -1, -1]), Grid(2, 2), (0.5, 0, 1, 1), "tile")
    tokens = token_map(report_of(6, [left, right], Selection(torch.arange(6))), (40, 20))
    assert tokens[5, [5, 15, 25, 35]].tolist() == [0, 1, 4, 5]
    assert tokens[15, [5, 15, 25, 35]].tolist() == [2, 3, -1, -1]


def test_a_merged_token_names_its_sources_and_shares():
    selection = merge_tokens(
        torch.randn(4, 3), torch.tensor([0, 3]), torch.tensor([0, 0, -1, 1]), torch.tensor([3.0, 1, 0, 1])
    )
    measured = {Need("received", 5): torch.tensor([0.4, 0.1, 0.3, 0.2])}
    document = report_of(4, [crop_of(2, 2)], selection, measured=measured)
    full_model = ask_like(document)
    view = full_model[-1]
    chosen = fact(view, view.token_at(view.picture.width - 1, 0))
    lines = dict(chosen.lines)
    assert chosen.token == 1 and chosen.title == "Token 1, row 0, column 1" and chosen.shown == (0, 1)
    assert lines["sources"] == "0 (75 %), 1 (25 %)" and "at row 0, column 0" in lines["state"]
    assert lines["score"] == "0.1, rank 4 of 4: attention received at block 5"
    assert dict(fact(view, 2).lines)["state"].startswith("dropped")
    assert dict(fact(view, 3).lines)["state"] == "kept unchanged"
    assert view.token_at(-1, 0) == view.token_at(0, view.picture.height) == -1


def ask_like(document):
    from foveate.app.views import _token_views

    return _token_views(document, Image.new("RGB", (60, 60), "white"))


def test_scores_and_shares_of_tiles_are_joined():
    kinds = ("tile", "tile")
    one = [
        report_of(4, [crop_of(2, 2, kind=kind)], Selection(torch.tensor([1])), measured={Need("received", 1): values})
        for kind, values in zip(kinds, (torch.arange(4.0), 10 + torch.arange(4.0)), strict=True)
    ]
    [whole] = joined(one)
    assert whole["measured"] == [{"kind": "received", "layer": 1, "values": [0, 1, 2, 3, 10, 11, 12, 13]}]
    assert whole["shares"] is None


def test_the_outline_is_drawn_around_the_token_only():
    document = report_of(16, [crop_of(4, 4)], Selection(torch.tensor([5])))
    [view] = ask_like(document)
    pixels = np.asarray(outlined(view, fact(view, 5)))
    changed = (pixels == ACCENT).all(axis=2)
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    side = view.picture.width / 4
    assert abs(rows[0] - side) < 4 and abs(rows[-1] - 2 * side) < 4
    assert abs(columns[0] - side) < 4 and abs(columns[-1] - 2 * side) < 4
    assert not changed[int(1.5 * side), int(1.5 * side)]


def test_the_pictures_go_through_the_stages_to_the_plan(uhd):
    image = noise(64, 48)
    full_model = ask(image, "?", uhd, max_new_tokens=2, keep_pooling=True)
    planned = ask(image, "?", uhd, "divprune:3", max_new_tokens=2)
    found = views(full_model, planned, image)
    names = [stage.name for stage in full_model.stages if stage.grid]
    assert [view.title for view in found] == [*names, "language model"]
    for view, stage in zip(found, full_model.stages, strict=False):
        assert sorted(set(view.tokens.flatten().tolist())) == list(range(stage.tokens))
        last = fact(view, view.token_at(view.picture.width - 1, view.picture.height - 1))
        assert last.token == stage.tokens - 1 and stage.name in last.title
    assert {name for name, _ in fact(found[1], 0).lines} >= {"pixels", "sources"}
    kept = planned.selection[0]["kept"]
    assert len(kept) == 3 and all(dict(fact(found[-1], one).lines)["state"] == "kept unchanged" for one in kept)
    assert [view.title for view in views(full_model, None, image)] == names


def test_another_model_shows_what_was_measured(llava):
    image = noise(32, 32)
    full_model = ask(image, "?", llava, max_new_tokens=2)
    planned = ask(image, "?", llava, "fastervlm:5", max_new_tokens=2)
    [score] = planned.selection[0]["measured"]
    best = sorted(sorted(range(64), key=lambda token: -score["values"][token])[:5])
    assert score["kind"] == "cls_attention" and best == planned.selection[0]["kept"]
    [view] = views(full_model, planned, image)
    ranks = sorted(dict(fact(view, token).lines)["score"].split(" of ")[0].split()[-1] for token in best)
    assert ranks == ["1", "2", "3", "4", "5"]
    [alone] = views(full_model, None, image)
    assert alone.token_at(3, 3) == -1


def test_bars_put_the_same_stage_together(uhd):
    compared = []
    for kind, plan in (("full-model", None), ("plan", "divprune:25%"), ("random", "random:4")):
        answer = ask(noise(64, 64), "?", uhd, plan, max_new_tokens=2)
        compared.append(Contender(kind, kind, plan, answer, (answer.times,)))
    bars = token_bars(compared)
    assert [(bar.label, bar.of) for bar in bars[:3]] == [("patches", each.kind) for each in compared]
    assert [(bar.label, bar.value, bar.of) for bar in bars[-2:]] == [
        ("divprune:25%", 4, "plan"),
        ("random:4", 4, "random"),
    ]
    for each in compared:
        assert [bar.value for bar in bars if bar.of == each.kind] == [stage.tokens for stage in each.answer.stages]
        assert [bar.value for bar in time_bars(compared) if bar.of == each.kind] == list(each.answer.times.values())
    assert len(time_bars(compared[:1])) == len(compared[0].answer.times)


def test_the_legend_counts_every_token_once():
    selection = merge_tokens(torch.randn(4, 3), torch.tensor([0, 3]), torch.tensor([0, 0, -1, 1]))
    texts = [entry.text for entry in legend_of(report_of(4, [crop_of(2, 2)], selection))]
    assert texts == ["1 kept", "2 merged into 1, a colour for each", "1 dropped"]
    inside = LayerReport("fastv:1@2", 2, 3, 1, 0.0, torch.tensor([3]))
    plain = report_of(4, [crop_of(2, 2)], Selection(torch.tensor([0, 2, 3])), layers=(inside,))
    assert [entry.text for entry in legend_of(plain)] == ["3 kept", "2 of these dropped before layer 2", "1 dropped"]


def test_cards_say_who_answered_what_and_are_escaped():
    shown = answers("<b>?", [Contender("full-model", "full model"), Contender("random", "random", refusal="it's $1")])
    assert "<b>" not in shown and "&lt;b&gt;?" in shown and shown.count('class="answer ') == 2
    assert "Not possible with this model: it&#x27;s &#36;1" in shown


def test_bars_as_html_are_escaped_and_to_scale():
    html = as_html("T", [Bar("<b>", 4, "4", "full-model"), Bar("<b>", 1, "1", "plan")])
    assert "<b>" not in html and html.count("&lt;b&gt;</span>") == 1  # said once, for both
    assert "width:100.00%" in html and "width:25.00%" in html
    assert "width:0.00%" in as_html("none", [Bar("a", 0, "0", "plan")])


@pytest.mark.parametrize("question", ["What's the total?", "-h", 'say "$HOME" `ls`', "zwei\nZeilen \\ ß"])
@pytest.mark.parametrize("plan", [None, "fastervlm:192 + fastv:50%@2"])
@pytest.mark.parametrize("model", [None, "a folder/model"])
def test_lines_say_what_was_asked(question, plan, model):
    words = shlex.split(shell_line("my image.png", question, plan, model))
    assert words[:2] == ["foveate", "ask"] and words[-2:] == ["my image.png", question]
    assert ("--" in words) == question.startswith("-")
    for option, value in (("--plan", plan), ("--model", model)):
        assert (words[words.index(option) + 1] if option in words else None) == value
    call = ast.parse(python_line("my image.png", question, plan, model)).body[1].value.args[0].value
    assert [ast.literal_eval(argument) for argument in call.args] == ["my image.png", question]
    named = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    assert named == {name: value for name, value in (("model", model), ("plan", plan)) if value}


def test_lines_have_the_length_of_answers_where_it_is_not_the_usual_one():
    assert "max_new_tokens=16)" in python_line("a.png", "?", None, max_new_tokens=16)
    assert shlex.split(shell_line("a.png", "?", None, max_new_tokens=16))[2:4] == ["--max-new-tokens", "16"]


def test_the_code_of_tokens_chosen_by_hand_makes_the_same_plan():
    chosen = ByHand((1, 4), 9)
    code = ast.parse(python_line("a.png", "?", chosen))
    names = {}
    exec(compile(ast.Module(code.body[:-1], []), "line", "exec"), names)
    [plan] = [word.value for word in code.body[-1].value.args[0].value.keywords]
    assert eval(compile(ast.Expression(plan), "line", "eval"), names) == chosen
    assert shell_line("a.png", "?", chosen).startswith("#")


def test_methods_on_offer_can_be_followed(uhd):
    offered = {choice.name: choice for choice in choices(uhd[0])}
    assert handle_of(uhd[0]) is None
    assert {"divprune", "random", "downsample", "fastv"} <= set(offered)
    assert not {"focusui", "covipal", "tome"} & set(offered)  # trained weights, merging that this encoder does itself
    for choice in offered.values():
        assert str(Plan.of(choice.plan(30))) == choice.plan(30)
    assert offered["divprune"].plan(30) == "divprune:30%" and ":" not in offered["vtw"].plan(30)


def test_a_click_on_a_painted_cell_of_a_frame_names_its_token(qwen, tmp_path):
    """White frames of 4 x 8 tokens, two to a raster; one cell of the third raster is black."""
    pytest.importorskip("av")
    frames = np.full((8, 32, 64, 3), 255, np.uint8)
    frames[4:6, 16:24, 40:48] = 0
    source = opened_clip(str(save_frames(tmp_path / "a.mkv", frames, fps=2)))
    full_model = ask(source, "?", qwen, max_new_tokens=1)
    planned = ask(source, "?", qwen, "random:100%", max_new_tokens=1)
    plain, view = clip_views(full_model, planned, source)
    assert plain.title == "full model" and (plain.tokens == -1).all()
    assert plain.caption.startswith("8 frames of 4.0 s. 128 of 128 tokens")
    found = view.tokens >= 0
    assert sorted(set(view.tokens[found].tolist())) == list(range(128))
    dark = found & (np.asarray(view.picture.convert("L")) < 60)
    token = 2 * 32 + 2 * 8 + 5
    assert dark.any() and (view.tokens[dark] == token).mean() > 0.95
    assert fact(view, token).title == f"Token {token}, row 2, column 5 of frame 2 at 2.2 s"
    assert (np.asarray(outlined(view, fact(view, token))) == ACCENT).all(axis=2).any()

    chosen = ask(source, "?", qwen, "uniform-frames:4", max_new_tokens=1)
    _, frames_only = clip_views(full_model, chosen, source)
    assert frames_only.caption.startswith("4 frames of") and not frames_only.legend


def test_only_models_with_clips_are_asked_about_them(qwen, uhd, tmp_path):
    pytest.importorskip("av")
    pytest.importorskip("torchvision")
    assert reads_clips(qwen) and not reads_clips(uhd)
    with pytest.raises(FoveateError, match="there is no clip yet"):
        opened_clip(None)
    (tmp_path / "a.mp4").write_text("<html>")
    with pytest.raises(FoveateError, match="video") as refused:
        opened_clip(str(tmp_path / "a.mp4"))
    assert str(tmp_path) not in str(refused.value)
    long = save_frames(tmp_path / "long.mkv", np.zeros((2, 16, 16, 3), np.uint8), times=[0.0, 700.0])
    with pytest.raises(FoveateError, match="a clip may take 600 s here"):
        opened_clip(str(long))


def test_frames_are_chosen_first():
    assert {"uniform-frames", "fps", "scene"} <= {*samplers()} and "query-frames" not in samplers()
    for name in samplers():
        assert str(Plan.of(with_frames("evs:25%", name, 4))) == f"{name}:4 + evs:25%"
    assert with_frames("evs:25%", "", 4) == "evs:25%" and with_frames("", "scene", 4) == "scene:4"


def test_the_settings_of_a_plan_are_those_of_one_method_and_a_percentage():
    offered = [Choice("vispruner", "VisPruner", "count"), Choice("zipvl", "ZipVL", "none")]
    assert settings_of("vispruner:25%", offered) == ("vispruner", 25)
    for other in ("divprune:25%", "vispruner:64", "vispruner:25% + vtw", "vispruner", "zipvl", "zipvl:25%", ""):
        assert settings_of(other, offered) is None
