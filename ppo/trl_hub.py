"""Uploading a saved policy to the hub."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import UserError

if TYPE_CHECKING:
    from ppo.trl_config import PPOConfig

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check_hub(args: "PPOConfig", *, asked: bool = False) -> None:
    """Check that an upload is possible, where one is asked for.

    Raises:
        UserError: offline.
    """
    if not (args.push_to_hub or asked):
        return
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise UserError(
                f"push_to_hub: there is no upload while {name} is set; unset it, or save with "
                "trainer.save_model() and upload the folder later"
            )


def push(args: "PPOConfig", folder: Path, message: str) -> str:
    """Upload a folder and return its address.

    Raises:
        UserError: when there is no way to the hub, or it refuses.
    """
    from huggingface_hub import HfApi

    name = args.hub_model_id or folder.absolute().name
    try:
        api = HfApi(token=args.hub_token)
        repository = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            revision=args.hub_revision,
            ignore_patterns=["ppo/*"],  # the run's own files
        )
    except Exception as error:  # noqa: BLE001 - network, rights and names fail in many ways
        raise UserError(
            f"push_to_hub: {name}: {type(error).__name__}: {error}; the model is in {folder}"
        ) from None
    return str(done.commit_url)
