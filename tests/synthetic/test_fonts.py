"""Whatever fonts a machine has, everything can be drawn."""

import importlib.util
import os
from pathlib import Path

import pytest

from foveate.core.errors import FoveateError
from foveate.synthetic import TASKS, families, families_of, fonts, render


@pytest.fixture
def only(monkeypatch):
    """Makes the fonts of some folders the only ones, for one test."""

    def choose(folders):
        monkeypatch.setattr(fonts, "font_folders", lambda: folders)
        families.cache_clear()
        families_of.cache_clear()

    yield choose
    monkeypatch.undo()
    families.cache_clear()
    families_of.cache_clear()


def test_without_any_font_file_pillows_own_serves_both_splits(only, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font at all")
    only([tmp_path])
    assert len(families()) == 1
    assert families_of("train") == families_of("heldout")
    for task in TASKS:
        assert render(task, 1).answer


def test_matplotlibs_fonts_are_enough_for_two_splits(only):
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        pytest.skip("matplotlib is not installed")
    only([Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"])
    names = {split: {font.family for family in families_of(split) for font in family} for split in ("train", "heldout")}
    assert any("DejaVu" in name for name in names["train"] | names["heldout"])
    assert names["train"]
    assert names["heldout"]
    assert names["train"].isdisjoint(names["heldout"])
    for task in TASKS:
        assert render(task, 2, "heldout").answer


def test_the_environment_replaces_the_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("FOVEATE_FONTS", f"{tmp_path}{os.pathsep}{tmp_path}")
    assert fonts.font_folders() == [tmp_path, tmp_path]
    monkeypatch.setenv("FOVEATE_FONTS", "")
    assert fonts.font_folders() == []
    monkeypatch.setenv("FOVEATE_FONTS", str(tmp_path / "missing"))
    with pytest.raises(FoveateError, match="missing', which is not a folder"):
        fonts.font_folders()
    monkeypatch.delenv("FOVEATE_FONTS")
    assert tmp_path not in fonts.font_folders()


def test_fonts_have_all_of_printable_ascii_and_two_cases():
    for fonts_of_family in families().values():
        for font in fonts_of_family:
            assert set(font.advances) == {chr(code) for code in range(32, 127)}
            face = font.face(20)
            for pair in ("aA", "gG"):
                small, capital = (face.glyph(char) for char in pair)
                assert small.matte is not None
                assert capital.matte is not None
                assert small.matte.tobytes() != capital.matte.tobytes()
