from types import SimpleNamespace

import pytest

from ppo import PPOConfig
from ppo.trl_hub import OFFLINE, check_hub, push
from workbench.errors import UserError


@pytest.fixture
def args():
    return PPOConfig(
        "out", push_to_hub=True, hub_model_id="me/aligned", hub_token="t", hub_private_repo=True
    )


@pytest.mark.parametrize("name", OFFLINE)
def test_offline_an_upload_is_refused(args, name, monkeypatch):
    for other in OFFLINE:
        monkeypatch.delenv(other, raising=False)
    check_hub(args)
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=rf"push_to_hub: .* while {name} is set"):
        check_hub(args)
    check_hub(PPOConfig("out"))
    with pytest.raises(UserError, match="save_model"):
        check_hub(PPOConfig("out"), asked=True)


def test_the_folder_is_uploaded_without_the_run_s_files(args, monkeypatch, tmp_path):
    calls = {}

    class Api:
        def __init__(self, token):
            calls["token"] = token

        def create_repo(self, name, **given):
            calls["made"] = (name, given["private"])
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, **given):
            calls["sent"] = given
            return SimpleNamespace(commit_url="https://hub/x")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push(args, tmp_path, "done") == "https://hub/x"
    assert (calls["token"], calls["made"]) == ("t", ("me/aligned", True))
    sent = calls["sent"]
    assert (sent["folder_path"], sent["commit_message"]) == (tmp_path, "done")
    assert sent["ignore_patterns"] == ["ppo/*"]


def test_what_the_hub_refuses_ends_in_one_line(args, monkeypatch, tmp_path):
    def fail(**_):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi", fail)
    with pytest.raises(UserError, match="me/aligned: OSError: no network; the model is in"):
        push(args, tmp_path, "done")
