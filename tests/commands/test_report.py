"""`foveate report`: the folder it makes, and what it refuses."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from foveate.answering import ask
from foveate.cli import main
from foveate.report.images import IMAGES
from foveate.visualization.selection import draw_tokens
from tests.benchmark import result_documents as documents
from tests.full_disk import room
from tests.tiny_model import noise, save_llava, save_llava_uhd

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
VOID = {"meta", "link", "img", "input", "br", "path", "circle"}


class Page(HTMLParser):
    """A page's elements, checked for being closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.open, self.elements, self.words = path, [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, self.path

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def run(*arguments) -> int:
    return main(["report", *map(str, arguments)])


def pages_of(folder: Path) -> list[Page]:
    return [Page(path) for path in sorted(folder.rglob("*.html"))]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return documents.save(folder, a=documents.accuracy(), s=documents.speed(), j=documents.joint())


@pytest.fixture(scope="module")
def made(three, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "report"
    assert run(*three, "-o", folder, "--no-pictures") == 0
    return folder


def test_a_full_disk_leaves_the_old_report(three, made, tmp_path, capsys):
    folder = Path(shutil.copytree(made, tmp_path / "report"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with room(1000):
        assert run(*three[:1], "-o", folder, "--no-pictures") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_page_over_everything_and_one_for_every_method(made):
    names = sorted(str(page.path.relative_to(made)) for page in pages_of(made))
    assert names == ["index.html", *(f"methods/{name}.html" for name in ("divprune", "downsample", "fastv", "random"))]
    for name in ("tokens-small", "time-small-cpu"):
        assert Image.open(made / "plots" / f"{name}.png").width > 800


def test_the_numbers_of_the_files_are_on_the_pages(made):
    index = " ".join(Page(made / "index.html").words)
    # Of divprune:10 by hand: accuracy, its interval and task, relative accuracy, time, memory; then what the file says.
    for shown in (
        "60.0%", "50.0–70.0", "72%", "80.0%", "76.0–84.0", "of 8", "70", "60–90", "2.00", "0.900", "12.5",
        "8 plans of 4 methods on 1 model", "focusui needs trained weights.", "int8", "foveate bench something", "a CPU",
        "What columns mean.",
    ):  # fmt: skip
        assert shown in index, shown
    method = " ".join(Page(made / "methods" / "divprune.html").words)
    for shown in ("DivPrune: Diversity-based", "arXiv 2503.02175", "divprune:10", "random:10", "downsample:50"):
        assert shown in method
    assert "fastv:10@1" not in method
    fastv = " ".join(Page(made / "methods" / "fastv.html").words)
    assert "An Image is Worth 1/2 Tokens" in fastv and "inside the language model" in fastv


def test_pages_stand_alone_and_links_lead_somewhere(made):
    for page in pages_of(made):
        ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
        for attributes in page.all("a") + page.all("img") + page.all("link") + page.all("script"):
            target = attributes.get("href") or attributes.get("src") or ""
            if target.startswith("#"):
                assert target[1:] in ids
            elif target.startswith("https:"):
                assert target.startswith("https://arxiv.org/abs/")
            elif target and target != "data:,":
                assert (page.path.parent / unquote(target)).is_file(), target
        text = page.path.read_text(encoding="utf-8")
        assert "url(" not in text and "@import" not in text and "fetch(" not in text


def test_tables_can_be_read_aloud(made):
    for page in pages_of(made):
        assert len(page.all("caption")) == len(page.all("table")) > 0
        assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
        assert all(image.get("alt") for image in page.all("img"))
        assert all(one.get("aria-label") or one.get("aria-hidden") for one in page.all("svg"))
    assert {"en"} == {page.all("html")[0]["lang"] for page in pages_of(made)}


def test_the_same_files_make_the_same_report(made, three, tmp_path):
    assert run(*three, "-o", tmp_path / "again", "--no-pictures") == 0
    for path in made.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(made)).read_bytes()
    assert not list(tmp_path.rglob("*.partial"))


def test_names_cannot_become_markup(tmp_path, capsys):
    evil = '<script>alert("1")</script>'
    document = documents.accuracy(model=evil)
    for row in document["rows"]:
        row["plan"] = row["plan"].replace("divprune", evil)
        row["method"] = row["method"].replace("divprune", "../../" + evil)
        row["task"] = row["task"].replace("read_word", evil)
    document |= {"command": evil, "note": evil, "impossible": [{"model": evil, "plan": evil, "reason": evil}]}
    [path] = documents.save(tmp_path, a=document)
    folder = tmp_path / "report"
    assert run(path, "-o", folder, "--no-pictures", "--title", evil, "--json") == 0
    assert json.loads(capsys.readouterr().out)["pages"] == 5
    for page in pages_of(folder):
        assert len(page.all("script")) == 1
        assert evil in "".join(page.words)
    assert {path.parent.name for path in folder.rglob("*.*")} == {"report", "methods", "plots"}


def test_names_of_any_letters_have_files_of_their_own(tmp_path, capsys):
    models = ["模型", "модель", "m" * 5000, "a\nb"]
    paths = documents.save(tmp_path, **{f"a{n}": documents.accuracy(model) for n, model in enumerate(models)})
    assert run(*paths, "-o", tmp_path / "report", "--no-pictures", "--json") == 0
    assert len(set(json.loads(capsys.readouterr().out)["plots"])) == len(models)
    index = Page(tmp_path / "report" / "index.html")
    files = [one["href"] for one in index.all("a") if one["href"].endswith(".png")]
    assert len(set(files)) == len(models) and all((tmp_path / "report" / file).is_file() for file in files)
    assert {"模型", "модель"} <= set(index.words)


def test_results_of_the_earlier_command(tmp_path, capsys):
    assert run(RESULTS / "selection-cpu.json", "-o", tmp_path / "r", "--no-pictures", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == {"accuracy": 0, "speed": 72, "joint": 0, "trained": 0} and found["plots"] == []
    words = " ".join(Page(tmp_path / "r" / "index.html").words)
    assert "1.025" in words and "3,006" in words


def row(**changes):
    document = documents.accuracy()
    document["rows"][1] |= changes
    return document


def without(name):
    document = documents.accuracy()
    del document["rows"][2][name]
    return document


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "it has no rows"),
        ('{"rows": 3}', "it has no rows"),
        ({"kind": "accuracy", "rows": []}, "has no rows yet"),
        ({"kind": "accuracy", "rows": [3]}, "row 1 is not an object"),
        ({"kind": "training", "rows": [{}]}, "of the kind 'training'"),
        ({"rows": [{"loss": 1}]}, "of the kind None"),
        ({"rows": [{"shape": "x"}]}, "a row misses what"),
        (without("tokens_kept"), "row 3 has no 'tokens_kept'"),
        (row(model="\ud800"), "is not JSON: 'utf-8' codec can't encode"),
        (row(accuracy=1.5), "row 2: 'accuracy' cannot be 1.5"),
        (row(accuracy=float("nan")), "'accuracy' cannot be nan"),
        (row(count=10**400), "'count' cannot be 1000"),
        (row(count=True), "'count' cannot be True"),
        (row(model=""), "'model' cannot be ''"),
        (row(model=["m"]), "'model' cannot be ['m']"),
        (row(difficult={"count": "many"}), "'difficult.count' cannot be 'many'"),
        (documents.accuracy() | {"impossible": [{"plan": "x"}]}, "a line of 'impossible'"),
        (documents.accuracy() | {"rows": documents.accuracy()["rows"] * 2}, "numbers of two runs"),
        (documents.speed() | {"rows": [documents.speed()["rows"][0] | {"seconds": {}}]}, "no time to the first token"),
    ],
)
def test_a_file_that_cannot_be_reported_is_one_sentence(content, message, tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert run(path, "-o", tmp_path / "report", "--no-pictures", "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert message in error and "\n" not in error and len(error) < 400
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("encoders-cpu.json", "compares encoders"), ("a.rows.jsonl", "answers to single questions"),
     ("authors-cpu.json", "of the kind"), ("selection-cpu.png", "is not JSON"), ("nowhere.json", "No such file"),
     (".", "Is a directory")],
)  # fmt: skip
def test_other_files_are_refused(name, message, tmp_path, capsys):
    rows = tmp_path / "a.rows.jsonl"
    rows.write_text('{"kind": "answers"}\n{"plan": "pool:4"}\n', encoding="utf-8")
    path = rows if name.endswith(".jsonl") else RESULTS / name
    assert run(path, "-o", tmp_path / "report", "--json") == 2
    assert message in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "report").exists()


def test_a_report_stays_when_the_next_one_fails(three, tmp_path, capsys):
    folder = tmp_path / "report"
    assert run(*three, "-o", folder, "--no-pictures") == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert run(*three, three[0], "-o", folder, "--no-pictures") == 2
    assert "again in" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_pages_are_not_overwritten(three, tmp_path, capsys):
    (tmp_path / "index.html").write_text("<h1>mine</h1>")
    assert run(*three, "-o", tmp_path, "--no-pictures") == 2
    assert "is another page" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == "<h1>mine</h1>"
    assert run(*three, "-o", three[0], "--no-pictures") == 2
    assert "is a file" in capsys.readouterr().err


def test_pages_of_methods_that_are_gone_are_removed(made, tmp_path):
    folder = Path(shutil.copytree(made, tmp_path / "report"))
    before = documents.accuracy()
    before["rows"] = [row for row in before["rows"] if not row["plan"].startswith("fastv")]
    (folder / "methods" / "own.html").write_text("<title>Notes</title>")
    assert run(*documents.save(tmp_path, a=before), "-o", folder, "--no-pictures") == 0
    names = {path.stem for path in (folder / "methods").glob("*.html")}
    assert "own" in names and "divprune" in names and "fastv" not in names


def test_every_page_of_the_committed_report_is_linked():
    folder = RESULTS.parents[1] / "docs" / "results"
    linked = {attributes.get("href", "").split("#")[0] for attributes in Page(folder / "index.html").all("a")}
    assert {f"methods/{path.name}" for path in (folder / "methods").glob("*.html")} <= linked


def test_pictures_are_drawn_once(tmp_path, capsys):
    document = documents.accuracy(
        plans={"full model": (16, 1.0), "divprune:4": (4, 0.5), "vtc-cls:4": (4, 0.6), "tome:4": (4, 0.6)}
    )
    [path] = documents.save(tmp_path, a=document)
    uhd, llava = save_llava_uhd(tmp_path / "uhd"), save_llava(tmp_path / "llava")
    asked = [path, "-o", tmp_path / "report", "--pictures-model", uhd, "--json"]
    assert run(*asked) == 0
    first = json.loads(capsys.readouterr().out)["pictures"]
    assert (first["drawn"], first["found"], list(first["impossible"])) == (4, 0, ["tome", "vtc-cls"])
    pictures = {one: one.stat().st_mtime_ns for one in (tmp_path / "report" / "pictures").glob("*.webp")}
    assert len(pictures) == 2 * len(IMAGES) == 12
    page = Page(tmp_path / "report" / "methods" / "divprune.html")
    assert len(page.all("img")) == 6 and "3 of 12 tokens" in " ".join(page.words)
    assert "There are no images" in " ".join(Page(tmp_path / "report" / "methods" / "tome.html").words)

    assert run(*asked) == 0
    again = json.loads(capsys.readouterr().out)["pictures"]
    assert (again["drawn"], again["found"]) == (0, 4)
    assert pictures == {one: one.stat().st_mtime_ns for one in pictures}

    # On the first model that can follow the plan; what no page shows any more is removed.
    next(iter(pictures)).unlink()
    assert run(*asked, "--pictures-model", llava) == 0
    more = json.loads(capsys.readouterr().out)["pictures"]
    assert (more["drawn"], list(more["impossible"])) == (3, ["tome"])
    assert len(list((tmp_path / "report" / "pictures").glob("*.webp"))) == 18
    assert len(Page(tmp_path / "report" / "methods" / "vtc-cls.html").all("img")) == 6
    assert "llava: 1 blocks cannot bring" in more["impossible"]["tome"]


def test_kept_tokens_are_as_they_were(tmp_path):
    image = noise(64, 64)
    everything = ask(image, "?", save_llava_uhd(tmp_path), "divprune:100%", max_new_tokens=1).selection[0]
    half = ask(image, "?", tmp_path, "divprune:50%", max_new_tokens=1).selection[0]
    full, less = (draw_tokens(one, image, (64, 100)).load() for one in (everything, half))
    rows, columns = half["crops"][0]["grid"]
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        middle = (column * 64 // columns + 8, row * 64 // rows + 8)
        assert full[middle] == image.convert("RGB").getpixel(middle)
        assert (less[middle] == full[middle]) == (place in half["kept"])
