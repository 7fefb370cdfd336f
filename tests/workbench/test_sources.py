import pytest

from workbench.errors import UserError
from workbench.sources import named_sources


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["base=x,aligned=runs/demo/ppo/model"], {"base": "x", "aligned": "runs/demo/ppo/model"}),
        (["a=x", "b=y, c = z"], {"a": "x", "b": "y", "c": "z"}),
        (["runs/demo/ppo/model"], {"ppo": "runs/demo/ppo/model"}),
        (["owner/name", "smollm2-135m-instruct"],
         {"name": "owner/name", "smollm2-135m-instruct": "smollm2-135m-instruct"}),
        (["a=b=c"], {"a": "b=c"}),
        (["openai:http://h:1/v1#policy"], {"policy": "openai:http://h:1/v1#policy"}),
        (["openai:http://h/v1#owner/name"], {"name": "openai:http://h/v1#owner/name"}),
        (["x=openai:http://h/v1#p"], {"x": "openai:http://h/v1#p"}),
    ],
)  # fmt: skip
def test_models_have_names(texts, named):
    assert named_sources(texts, "--models") == named


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a="], "--models: 'a=' is not name=model, several joined by commas"),
        (["=x"], "--models: '=x' is not name=model"),
        (["a=x,"], "--models: '' is not name=model"),
        ([""], "--models: '' is not name=model"),
        (["a=x", "a=y"], "--models: two models are called 'a'; write name=model"),
        (["x", "x"], "--models: two models are called 'x'; write name=model"),
    ],
)
def test_a_model_without_name_or_with_another_s_is_refused(texts, message):
    with pytest.raises(UserError, match=f"^{message}"):
        named_sources(texts, "--models")
