"""What counts as the same answer."""

import pytest

from foveate.benchmark.matching import matches, normal


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("  yes.\n", "yes"),
        ("156,  Link Sq.\nTaman", "156, link sq. taman"),
        ("1,200.50", "1200.50"),
        ("1200.5", "1,200.50"),
        ("+12", "12"),
        ("12.00", "12"),
        ("-3.10!", "-3.1"),
        ("RM 1,250.00", "RM 1250"),
        ("1,234,567", "1234567"),
        ("25.0%", "25%"),
        ('"Total"', "Total"),
        ("“Total.”", "total"),
        ("\uff21\uff22\uff23", "abc"),  # full-width letters
        ("Straße", "STRASSE"),
        ("a.m.", "A.M"),
    ],
)
def test_only_writing_differs(text, answer):
    assert matches(text, answer)
    assert matches(answer, text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes, it is", "yes"),
        ("12.40", "$12.40"),
        ("007", "7"),
        ("0.50", ".50 "),
        ("1,20", "120"),
        ("12,345,6", "123456"),
        ("1.200,50", "1200.50"),
        ("12.05.2024", "12.5.2024"),
        ("-5", "5"),
        ("5%", "5"),
        ("", "0"),
        ("ab", "a b"),
        ("no", "on"),
    ],
)
def test_something_else_differs(text, answer):
    assert not matches(text, answer)


@pytest.mark.parametrize("text", ["", ".", "?!", '""', "1,200.50.", "'a'.", " - ", "1,000 of 2,000"])
def test_a_normal_text_is_its_own_normal_text(text):
    assert normal(normal(text)) == normal(text)


def test_marks_alone_stay():
    assert normal(" ? ") == "?"
    assert not matches("?", "")
    assert normal("1,000 of 2,000.00.") == "1000 of 2000"
