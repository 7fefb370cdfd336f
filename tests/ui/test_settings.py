import pytest

from ui.settings import CampaignSettings
from workbench.config import load_config, settings
from workbench.errors import UserError


def test_the_defaults_are_possible():
    assert CampaignSettings().validate() is None
    assert CampaignSettings().price_per_label == 0.012


@pytest.mark.parametrize(
    "override",
    [
        "raters_per_item=0",
        "seed=-1",
        "seed=2147483648",
        "lease_seconds=0",
        "lease_seconds=2592001",
        "gold_share=-0.1",
        "gold_share=1",
        "swap_share=1.5",
        "price_per_label=-1",
        "mode=duel",
    ],
)
def test_an_impossible_setting_is_named(override):
    key, _, value = override.partition("=")
    with pytest.raises(UserError, match=f"command line: {key}='?{value}"):
        load_config(CampaignSettings, overrides=[override])


def test_gold_and_swaps_leave_room_for_the_rest():
    settings = CampaignSettings(gold_share=0.5, swap_share=0.5)
    assert settings.validate() == ("swap_share", "together with gold_share must be less than 1")


def test_every_setting_says_what_it_is():
    assert all(setting.help for setting in settings(CampaignSettings))
