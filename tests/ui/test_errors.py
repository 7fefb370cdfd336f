from ui.errors import Refused
from workbench.errors import UserError


def test_a_refusal_is_one_line_and_one_word():
    refused = Refused("expired", "the time\nran out")
    assert isinstance(refused, UserError)
    assert (refused.reason, str(refused)) == ("expired", "the time ran out")
