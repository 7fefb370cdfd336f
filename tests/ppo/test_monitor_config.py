"""One line for every impossible setting of the monitors."""

import pytest

from ppo.config import PPOStage
from workbench.config import load_config
from workbench.errors import UserError


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_config(PPOStage, None, ["reward_model=somewhere", *overrides])
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("monitors.patience=0", "at least 1"),
        ("monitors.samples_rows=0", "at least 1"),
        ("monitors.samples_every=-1", "0 or more"),
        ("monitors.print_samples=-1", "0 or more"),
        ("monitors.max_length_ratio=1", "greater than 1"),
        ("monitors.max_distinct_fall=0", "between 0 and 1"),
        ("monitors.max_distinct_fall=1", "between 0 and 1"),
        ("monitors.stop=true", "needs a held-out reward"),
        ("monitors.rewards=[somewhere]", "is learned from"),
    ],
)
def test_an_impossible_setting_is_one_line_naming_it(override, part):
    text = refused(override)
    assert override.partition("=")[0] in text
    assert part in text


def test_stop_takes_either_kind_of_held_out_reward():
    for held_out in ("ppo.eval_gold=true", "monitors.rewards=[elsewhere]"):
        given = ["reward_model=somewhere", "monitors.stop=true", held_out]
        assert load_config(PPOStage, None, given).monitors.stop
