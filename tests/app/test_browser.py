"""The playground as its visitors have it: `foveate app` in a process of its own, and a headless Chromium.

Run by `make test-browser`. Pictures of the page go into the folder that FOVEATE_SHOTS names.
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

import foveate
from foveate.app.by_hand import ByHand
from foveate.app.examples import save_example_clip
from tests.tiny_model import save_qwen

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'foveate[app]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")]

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Milliseconds that a slow machine may take for an answer.
PATIENCE = 120_000
PLAN = "divprune:25%"
RECEIPT, TOTAL = "receipt.png", "What is the total?"


@pytest.fixture(scope="session")
def model():
    return foveate.load()


CLIP_PLAN = "uniform-frames:8 + evs:50%"


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """Address of the app of the embedded model."""
    with app_of(tmp_path_factory.mktemp("app"), "--plan", PLAN, "--max-new-tokens", "16") as address:
        yield address


@pytest.fixture(scope="session")
def clip_model(tmp_path_factory):
    """Folder of a model that reads clips, with random weights and positions for all frames of the example."""
    folder = save_qwen(tmp_path_factory.mktemp("qwen"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 2048
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def clip_address(tmp_path_factory, clip_model):
    """Address of the app of that model."""
    options = ["--model", str(clip_model), "--plan", CLIP_PLAN, "--max-new-tokens", "8"]
    with app_of(tmp_path_factory.mktemp("app"), *options) as address:
        yield address


@contextmanager
def app_of(folder, *options):
    """Run the app, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "log.txt"
    command = [sys.executable, "-m", "foveate", "app", "--port", str(port), *options]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=stream)
    try:
        while "the app runs at" not in log.read_text():
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"foveate app ended: {log.read_text()}")
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Opens the page; afterwards only the app itself may have been asked for anything."""
    asked, faults, contexts, addresses = [], [], [], set()

    def visit(width=1280, height=1000, scheme="light", address=address):
        addresses.add(urlparse(address).netloc)
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#ask")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert asked and not faults
    assert {urlparse(url).netloc for url in asked if not url.startswith(("data:", "blob:"))} == addresses


def shot(page, name):
    """A picture of the whole page, small enough for a page of documentation."""
    if folder := os.environ.get("FOVEATE_SHOTS"):
        page.wait_for_timeout(500)
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        Path(folder).mkdir(parents=True, exist_ok=True)
        picture.quantize(192, dither=Image.Dither.NONE).save(Path(folder) / f"{name}.png", optimize=True)


def upload(page, path, where="#image"):
    page.set_input_files(f"{where} input[type=file]", str(path))


def ask(page, question=None, plan=None, button="#ask"):
    """Fill in and ask; waits for the new answers, their times and the picture."""
    if question is not None:
        page.fill("#question textarea", question)
    if plan is not None:
        page.fill("#plan textarea", plan)
    page.evaluate("document.querySelector('#answers .answers')?.setAttribute('data-old', '')")
    page.click(button)
    page.wait_for_selector("#answers .answers:not([data-old])")
    page.wait_for_selector("#overlay img", state="attached")


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def picture_of(page, where="#overlay"):
    """The picture that the page shows, as it was sent."""
    source = page.get_attribute(f"{where} img", "src")
    return Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")


def click(page, picture, x, y, where="#overlay"):
    """Click the point of the picture that has these pixels."""
    box = page.locator(f"{where} img").bounding_box()
    # The picture is as large as its box has room for, in the middle of it.
    scale = min(box["width"] / picture.width, box["height"] / picture.height, 1)
    left = (box["width"] - scale * picture.width) / 2
    top = (box["height"] - scale * picture.height) / 2
    page.locator(f"{where} img").click(position={"x": left + scale * x, "y": top + scale * y})


def fact_of_click(page, picture, x, y):
    click(page, picture, x, y)
    page.wait_for_selector("#fact h3")
    return page.inner_text("#fact h3")


def test_an_example_is_answered_four_times(visit, model):
    page = visit(height=900)
    page.get_by_text(TOTAL).first.click()
    page.wait_for_selector("#image img")
    ask(page)
    image = str(EXAMPLES / RECEIPT)
    planned = foveate.ask(image, TOTAL, model, PLAN, max_new_tokens=16)
    count = planned.tokens.read
    plans = {"full-model": None, "plan": PLAN, "random": f"random:{count}", "downsample": f"downsample:{count}"}
    for kind, plan in plans.items():
        expected = foveate.ask(image, TOTAL, model, plan, max_new_tokens=16)
        card = page.locator(f"#answers .answer.{kind}")
        assert card.locator(".text").inner_text() == expected.text
        assert f"{expected.tokens.read} tokens" in card.inner_text()
        assert re.search(r"\d m?s", card.inner_text())
    assert page.inner_text("#answers .asked") == TOTAL
    # The button and all answers are on the first screen.
    assert page.evaluate("window.scrollY") == 0
    for box in ("#ask", *(f"#answers .answer.{kind}" for kind in plans)):
        place = page.locator(box).bounding_box()
        assert place["y"] >= 0 and place["y"] + place["height"] <= 900
    dropped = len(planned.selection[0]["dropped"])
    assert page.locator("#caption .legend li").all_inner_texts() == [f"{count} kept", f"{dropped} dropped"]
    picture = picture_of(page)
    title = fact_of_click(page, picture, picture.width * 0.5, picture.height * 0.3)
    assert re.match(r"Token \d+, row \d+, column \d+", title)
    page.wait_for_timeout(1000)
    assert picture_of(page).tobytes() != picture.tobytes()  # the token is outlined
    shot(page, "desktop")
    open_tab(page, "Times")
    assert page.locator("#charts .names li").count() == 4
    assert page.locator("#charts .bar.downsample").count() > 4
    open_tab(page, "Code")
    assert f"plan='{PLAN}'" in page.inner_text("#python") and f"--plan {PLAN}" in page.inner_text("#shell")
    assert RECEIPT in page.inner_text("#shell")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_click_on_a_painted_cell_names_its_token(visit, model, tmp_path, width):
    side = 448
    grid = foveate.ask(Image.new("RGB", (side, side)), "?", model, "divprune:100%", max_new_tokens=1).selection[0]
    rows, columns = grid["crops"][0]["grid"]
    row, column = rows - 2, columns // 3
    pixels = np.full((side, side, 3), 255, np.uint8)
    down, across = (
        slice(side * row // rows, side * (row + 1) // rows),
        slice(side * column // columns, side * (column + 1) // columns),
    )
    pixels[down, across] = 0
    Image.fromarray(pixels).save(tmp_path / "cell.png")
    page = visit(width=width)
    upload(page, tmp_path / "cell.png")
    page.wait_for_selector("#image img")
    ask(page, "?", "divprune:100%")
    picture = picture_of(page)
    dark = np.asarray(picture.convert("L")) < 60
    tall, wide = dark.nonzero()
    title = fact_of_click(page, picture, float(np.median(wide)), float(np.median(tall)))
    assert title == f"Token {row * columns + column}, row {row}, column {column}"
    assert "kept unchanged" in page.inner_text("#fact")


def test_the_pictures_go_through_the_stages(visit, tmp_path):
    page = visit()
    Image.new("RGB", (320, 240), "teal").save(tmp_path / "teal.png")
    upload(page, tmp_path / "teal.png")
    page.wait_for_selector("#image img")
    ask(page, "What colour is it?", "random:10%")
    page.locator("#stage label").nth(3).wait_for()
    assert page.locator("#stage label").all_inner_texts() == ["patches", "stage 1", "stage 2", "language model"]
    for name, words in (("patches", "patch embedding"), ("stage 1", "after block"), ("stage 2", "after block")):
        page.locator("#stage label", has_text=name).click()
        page.locator("#caption p", has_text=words).wait_for()
        page.locator("#caption .legend").wait_for(state="detached" if name == "patches" else "visible")
    shot(page, "stage")
    assert fact_of_click(page, picture_of(page), 5, 5) == "stage 2, row 0, column 0"


def test_tokens_chosen_by_hand_are_the_ones_that_are_read(visit, model, tmp_path):
    page = visit()
    image = Image.new("RGB", (96, 96), "white")
    image.paste("black", (0, 0, 40, 40))
    image.save(tmp_path / "corner.png")
    upload(page, tmp_path / "corner.png")
    page.wait_for_selector("#image img")
    open_tab(page, "By hand")
    page.click("#open-board")
    page.wait_for_selector("#board img")
    rows, columns = foveate.ask(image, "?", model, "random:100%", max_new_tokens=1).selection[0]["crops"][0]["grid"]
    page.get_by_role("button", name="Drop all").click()
    legend = page.locator("#board-caption .legend li")
    chosen = [0, columns + 1, rows * columns - 1]
    for number, token in enumerate([*chosen, 1, 1]):  # the last is kept and dropped again
        kept = number if number < 4 else 4
        page.locator("#board-caption .legend li", has_text=re.compile(f"^{kept} kept$")).wait_for()
        picture = picture_of(page, "#board")
        row, column = divmod(token, columns)
        click(page, picture, (column + 0.5) * picture.width / columns, (row + 0.5) * picture.height / rows, "#board")
    page.locator("#board-caption .legend li", has_text=re.compile("^3 kept$")).wait_for()
    assert legend.all_inner_texts() == ["3 kept", f"{rows * columns - 3} dropped"]
    page.fill("#question textarea", "What colour is it?")
    ask(page, button="#ask-by-hand")
    shot(page, "by-hand")
    by_hand = ByHand(tuple(chosen), rows * columns)
    expected = foveate.ask(image, "What colour is it?", model, by_hand, max_new_tokens=16)
    card = page.locator("#answers .answer.plan")
    assert card.locator("h3").inner_text() == "3 tokens chosen by hand" and "3 tokens" in card.inner_text()
    assert card.locator(".text").inner_text() == (expected.text or "(no answer)")
    open_tab(page, "Picture")
    assert page.locator("#caption .legend li").all_inner_texts() == legend_texts(expected)
    open_tab(page, "Code")
    assert re.search(r"ByHand\(kept=\(0, \d+, \d+\), of=\d+\)", page.inner_text("#python"))


def legend_texts(answer):
    [document] = answer.selection
    return [f"{len(document['kept'])} kept", f"{len(document['dropped'])} dropped"]


def nothing_is_shown(page):
    return not any(page.locator(f"{where}:visible").count() for where in (".answer", "#overlay", ".legend", "#fact h3"))


def test_an_error_or_another_image_leaves_no_results(visit, tmp_path):
    page = visit()
    for name in ("one", "two"):
        Image.new("RGB", (96, 96), "teal").save(tmp_path / f"{name}.png")
    upload(page, tmp_path / "one.png")
    page.wait_for_selector("#image img")
    ask(page, "What colour is it?", PLAN)
    assert not nothing_is_shown(page)
    page.fill("#question textarea", "Is it red?")
    page.fill("#plan textarea", "divprun:5")
    page.click("#ask")
    page.locator("#notice", has_text="did you mean divprune").wait_for()
    page.wait_for_selector("#overlay", state="hidden")
    assert nothing_is_shown(page)
    ask(page, "Is it red?", PLAN)
    assert not page.locator("#notice .notice").count() and not nothing_is_shown(page)
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
    page.locator("#answers .welcome").wait_for()
    page.wait_for_selector("#overlay", state="hidden")
    assert nothing_is_shown(page)
    upload(page, tmp_path / "one.png")
    page.wait_for_selector("#image img")
    page.click("#ask")
    page.wait_for_selector("#answers .answers")
    page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()  # while it is answered
    page.locator("#answers .welcome").wait_for()
    page.wait_for_timeout(10_000)
    assert nothing_is_shown(page)
    open_tab(page, "By hand")
    page.click("#open-board")
    page.locator("#board-caption .notice", has_text="there is no image yet").wait_for()


def test_what_cannot_work_is_one_sentence(visit, tmp_path):
    page = visit()
    page.click("#ask")
    page.get_by_text("there is no image yet").wait_for()
    (tmp_path / "fake.png").write_text("<html><body>404</body></html>")
    upload(page, tmp_path / "fake.png")
    page.get_by_text("'fake.png' is not an image that foveate can read").wait_for()
    assert str(tmp_path) not in page.content() and "Traceback" not in page.content()
    Image.new("RGB", (64, 64)).save(tmp_path / "dot.png")
    upload(page, tmp_path / "dot.png")
    page.wait_for_selector("#image img")
    for question, plan, words in (("", PLAN, "question is empty"), ("?", "divprun:5", "did you mean divprune")):
        page.fill("#question textarea", question)
        page.fill("#plan textarea", plan)
        page.click("#ask")
        page.locator("#notice", has_text=words).wait_for()
    shot(page, "sentence")


def test_method_and_budget_write_the_plan(visit):
    page = visit()
    assert page.input_value("#plan textarea") == PLAN
    page.fill("#percent input[type=number]", "40")
    page.press("#percent input[type=number]", "Enter")
    page.wait_for_function("document.querySelector('#plan textarea').value == 'divprune:40%'")


def test_two_visitors_get_their_own_answers(visit, model, tmp_path):
    pages = []
    for name in ("red", "blue"):
        Image.new("RGB", (96, 96), name).save(tmp_path / f"{name}.png")
        page = visit()
        upload(page, tmp_path / f"{name}.png")
        page.wait_for_selector("#image img")
        page.fill("#question textarea", f"Is it {name}?")
        pages.append((name, page))
    for _, page in pages:
        page.click("#ask")
    for name, page in pages:
        page.wait_for_selector("#overlay img")
        expected = foveate.ask(str(tmp_path / f"{name}.png"), f"Is it {name}?", model, max_new_tokens=16)
        assert page.inner_text("#answers .answer.full-model .text") == (expected.text or "(no answer)")
        open_tab(page, "Code")
        assert f"{name}.png" in page.inner_text("#shell")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, scheme):
    page = visit(390, 844, scheme)
    place = page.locator("#ask").bounding_box()
    assert place["y"] + place["height"] <= 844
    upload(page, EXAMPLES / RECEIPT)
    page.wait_for_selector("#image img")
    ask(page, TOTAL)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    page.wait_for_timeout(1000)
    for card in page.locator("#answers .answer").all():  # the page went to them
        place = card.bounding_box()
        assert place["y"] >= 0 and place["y"] + place["height"] <= 844
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(int(value) for value in re.findall(r"\d+", colour)[:3]) > 3 * 128
    assert bright == (scheme == "light")
    shot(page, f"phone-{scheme}")


def test_files_of_the_server_are_not_given_out(visit, address):
    page = visit()
    for path in ("/etc/passwd", str(Path(__file__).resolve())):
        assert page.request.get(f"{address}/gradio_api/file={path}").status in (403, 404)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_clip_is_answered_four_times(visit, clip_address, clip_model, tmp_path, width):
    page = visit(width, 900, address=clip_address)
    assert page.input_value("#plan textarea") == CLIP_PLAN
    path, question = save_example_clip(tmp_path)
    open_tab(page, "Clip")
    upload(page, path, "#clip")
    page.wait_for_selector("#clip video")
    ask(page, question)
    model = foveate.load(clip_model)
    planned = foveate.ask(path, question, model, CLIP_PLAN, max_new_tokens=8)
    full_model = foveate.ask(path, question, model, max_new_tokens=8)
    count = planned.tokens.read
    plans = {
        "full-model": None,
        "plan": CLIP_PLAN,
        "random": f"uniform-frames:8 + random:{count}",
        "uniform-frames": f"uniform-frames:{full_model.frames * count // full_model.tokens.read}",
    }
    for kind, plan in plans.items():
        expected = foveate.ask(path, question, model, plan, max_new_tokens=8)
        card = page.locator(f"#answers .answer.{kind}")
        assert card.locator(".text").inner_text() == (expected.text or "(no answer)")
        assert (
            f"{expected.tokens.read} tokens" in card.inner_text() and f"{expected.frames} frames" in card.inner_text()
        )
    assert page.locator("#stage label").all_inner_texts() == ["full model", "plan"]
    page.locator("#caption p", has_text="8 frames of").wait_for()
    assert page.locator("#caption .legend li").first.inner_text() == f"{len(planned.selection[0]['kept'])} kept"
    picture = picture_of(page)
    title = fact_of_click(page, picture, picture.width * 0.1, picture.height * 0.1)
    assert re.match(r"Token \d+, row \d+, column \d+ of frame 0 at \d", title)
    page.wait_for_timeout(1000)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    shot(page, f"clip-{width}")
    open_tab(page, "By hand")
    page.click("#open-board")
    page.locator("#board-caption .notice", has_text="by hand in an image alone").wait_for()
    open_tab(page, "Code")
    assert f"--plan '{CLIP_PLAN}'" in page.inner_text("#shell") and "shapes.mp4" in page.inner_text("#shell")


def test_frames_are_chosen_where_a_clip_is_asked_about(visit, clip_address):
    page = visit(address=clip_address)
    page.wait_for_selector("#sampler")  # the plan chooses frames, so that clips come first
    page.fill("#percent input[type=number]", "40")
    page.press("#percent input[type=number]", "Enter")
    page.wait_for_function("document.querySelector('#plan textarea').value == 'divprune:40%'")
    page.click("#sampler input")
    page.get_by_role("option", name="scene").click()
    page.wait_for_function("document.querySelector('#plan textarea').value == 'scene:8 + divprune:40%'")
    open_tab(page, "Image")
    page.wait_for_function("document.querySelector('#plan textarea').value == 'divprune:40%'")
    open_tab(page, "Clip")
    page.wait_for_function("document.querySelector('#plan textarea').value == 'scene:8 + divprune:40%'")
    page.click("#ask")
    page.get_by_text("there is no clip yet").wait_for()
    page.locator("#clip-examples button, #clip-examples td").first.click()
    page.wait_for_selector("#clip video")
    ask(page)
    assert page.locator("#answers .answer").count() == 4
    open_tab(page, "Image")
    page.locator("#answers .welcome").wait_for()
    assert nothing_is_shown(page)
