"""One line for every impossible setting of PPO-ptx."""

import pytest

from ppo.config import PPOStage
from workbench.config import load_config
from workbench.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["ptx.coef=-1"], "ptx.coef"),
        (["ptx.coef=27.8"], "ptx.data"),
        (["ptx.test_fraction=1"], "ptx.test_fraction"),
        (["ptx.batch_size=0"], "ptx.batch_size"),
        (["ptx.micro_batch_size=0"], "ptx.micro_batch_size"),
        (["ptx.eval_texts=0"], "ptx.eval_texts"),
        (["ptx.max_length=1"], "ptx.max_length"),
    ],
)
def test_an_impossible_setting_is_one_line_naming_it(overrides, part):
    with pytest.raises(UserError) as error:
        load_config(PPOStage, None, ["reward_model=somewhere", *overrides])
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_the_texts_are_among_the_inputs_of_a_run(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a"}\n')
    config = load_config(PPOStage, None, ["reward_model=somewhere", f"ptx.data={path}"])
    before = config.inputs()["ptx"]
    path.write_text('{"text": "b"}\n')
    assert config.inputs()["ptx"] != before
