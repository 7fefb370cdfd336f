import dataclasses

import pytest

from ppo import PPOConfig, PPOTrainer
from ppo.trl_fields import HONOURED, REFUSED, WITHOUT_EFFECT
from tests.docs import listed, read, section

PAGE = read("migrating-from-trl.md")


@pytest.mark.parametrize(
    ("heading", "fields"),
    [("### Refused", REFUSED), ("### Without effect", WITHOUT_EFFECT)],
)
def test_each_field_stands_under_its_heading(heading, fields):
    assert listed(section(PAGE, heading)) == set(fields)


def test_every_field_is_on_the_page():
    everything = {field.name for field in dataclasses.fields(PPOConfig)}
    assert listed(section(PAGE, "### Honoured")) == set(HONOURED)
    assert listed(section(PAGE, "## Fields")) == everything


def test_every_argument_is_explained_in_its_order():
    import inspect

    rows = section(PAGE, "## The constructor").splitlines()
    named = [line.split("`")[1] for line in rows if line.startswith("| `")]
    assert named == list(inspect.signature(PPOTrainer).parameters)


def test_every_difference_has_both_sides():
    rows = section(PAGE, "## Deliberate differences").splitlines()
    cells = [line.strip("| ").split(" | ") for line in rows if line.startswith("| ")][2:]
    assert len(cells) > 15
    assert all(len(row) >= 2 and row[0].strip() and row[1].strip() for row in cells)
