"""The settings of a campaign."""

from dataclasses import dataclass

from ui.schema import Mode
from workbench.config import option


@dataclass
class CampaignSettings:
    """How a campaign is run."""

    mode: Mode = option("pair", "pair, ranking (4 to 9 answers), chat (live) or arena (live, open)")
    guidelines: str = option("", "what raters read before they begin")
    raters_per_item: int = option(3, "votes wanted for each item")
    seed: int | None = option(None, "of sides, gold and re-shows; null draws one, best kept secret")
    lease_seconds: int = option(1800, "an item without a vote goes to somebody else after this")
    gold_share: float = option(0.0, "share of gold questions among the items a rater is shown")
    swap_share: float = option(0.0, "share of one's own earlier items, with the sides swapped")
    blind: bool | None = option(None, "never reveal names; null: blind in all modes but arena")
    markdown: bool = option(False, "show answers as sanitised markdown rather than plain text")
    price_per_label: float = option(0.012, "in dollars, for the cost so far and to the end")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.raters_per_item < 1:
            return "raters_per_item", "must be at least 1"
        if self.seed is not None and not 0 <= self.seed < 2**31:
            return "seed", "must be from 0 to 2147483647"
        if not 1 <= self.lease_seconds <= 30 * 24 * 3600:
            return "lease_seconds", "must be from 1 second to 30 days"
        if not 0 <= self.gold_share < 1:
            return "gold_share", "must be at least 0 and less than 1"
        if not 0 <= self.swap_share < 1:
            return "swap_share", "must be at least 0 and less than 1"
        if self.gold_share + self.swap_share >= 1:
            return "swap_share", "together with gold_share must be less than 1"
        if not 0 <= self.price_per_label < 1e6:
            return "price_per_label", "must be an amount of dollars, 0 or more"
        return None
