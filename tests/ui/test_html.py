import pytest
from jinja2 import UndefinedError

from ui.html import render
from workbench.statistics import Estimate, Interval


def test_what_people_write_is_escaped():
    page = render("login.html", name='"><script>', target="/", error="<b>")
    assert "&#34;&gt;&lt;script&gt;" in page
    assert "&lt;b&gt;" in page


def test_a_value_that_is_missing_is_a_mistake():
    with pytest.raises(UndefinedError):
        render("login.html", name="x")


def test_numbers_are_written_for_people():
    estimate = Estimate(0.625, Interval(0.5, 0.75), 8)
    agreement = type("Agreement", (), {"percent": estimate, "krippendorff_alpha": None})
    cost = type(
        "Cost", (), {"labels": 12_345, "spent": 148.14, "labels_to_finish": 0, "to_finish": 0.0}
    )
    page = render("numbers.html", cost=cost, raters=1, agreement=agreement, left_out=["ann"])
    assert "12,345" in page
    assert "$148.14" in page
    assert "62 % <small>50–75</small>" in page
    assert "–</b>" in page
    assert "Left out: ann." in page


def test_long_texts_in_tables_are_cut_and_harmless():
    rows = [
        {"prompt": [{"role": "user", "content": "\u202ex" * 200}], "chosen": "<i>", "rejected": "r",
         "margin": 1.0, "votes": 2}
    ]  # fmt: skip
    found = type("Pairs", (), {"rows": rows, "votes": 2, "failed": ()})
    page = render("preview.html", found=found, left_out=[("ties", 3)])
    assert "⟨U+202E⟩" in page
    assert "the first 160 are shown" in page
    assert "&lt;i&gt;" in page
    assert "3 ties." in page
