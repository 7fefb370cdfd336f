"""A server that answers as vLLM does, with a model and adapters read from their folders."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.workbench.chat_server import ChatServer, serving
from workbench.generation import SamplingSettings, generate
from workbench.models import ModelSettings, load_policy

V1 = "/v1/"


@dataclass
class VLLMDouble(ChatServer):
    """A `ChatServer` of the endpoints that rollouts use; `change` sees answers to prompts only.

    Attributes:
        root: folder of the model it was started with, which it calls `policy`.
        raw: log-probabilities before the temperature, as `--logprobs-mode raw_logprobs` has them.
        stubborn: keeps answering with the first adapter, under any name.
        deaf: answers with the base model, under any name.
    """

    root: Path = Path()
    raw: bool = False
    stubborn: bool = False
    deaf: bool = False
    longest: int = 512
    loaded: dict[str, Any] = field(default_factory=dict)
    _model_lock: threading.Lock = field(default_factory=threading.Lock)
    _base: Any = None

    def names(self) -> list[str]:
        """What is loaded beside the model itself."""
        return list(self.loaded)

    def restart(self) -> None:
        """Forget what was loaded, as a new process would."""
        self.loaded.clear()

    def _answer(self, path: str, body: dict) -> tuple:
        with self._model_lock:
            known = {
                V1 + "models": self._models,
                V1 + "load_lora_adapter": self._load,
                V1 + "unload_lora_adapter": self._unload,
                V1 + "completions": self._complete,
            }
            return known[path](body)

    def _models(self, body: dict) -> tuple:
        rows = [{"id": "policy", "root": str(self.root), "max_model_len": self.longest}]
        rows += [{"id": name, "parent": "policy"} for name in self.loaded]
        return 200, {"object": "list", "data": rows}, {}

    def _load(self, body: dict) -> tuple:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.loaded:
            return (
                400,
                {"error": {"message": f"The lora adapter '{name}' has already been loaded."}},
                {},
            )
        if not (folder / "adapter_model.safetensors").is_file():
            return 404, {"error": {"message": f"{folder} does not exist"}}, {}
        self.loaded[name] = self._with(folder)
        return 200, "Success: LoRA adapter added successfully.", {}

    def _unload(self, body: dict) -> tuple:
        if self.loaded.pop(body["lora_name"], None) is None:
            return 404, {"error": {"message": "The lora adapter cannot be found."}}, {}
        return 200, "Success: LoRA adapter removed successfully.", {}

    def _complete(self, body: dict) -> tuple:
        name = body["model"]
        if name != "policy" and name not in self.loaded:
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}, {}
        model = self.base() if name == "policy" or self.deaf else self.loaded[name]
        if self.stubborn and self.loaded:
            model = self.first = getattr(self, "first", None) or next(iter(self.loaded.values()))
        query, stops = body["prompt"], body["stop_token_ids"] or [-1]
        settings = SamplingSettings(body["max_tokens"], body["temperature"], 1)
        (said,) = generate(model, [query], settings, eos_token_id=stops[0], seed=body["seed"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([query + said.ids])).logits[
                0, len(query) - 1 : -1
            ]
        scaled = logits / (1.0 if self.raw else body["temperature"] or 1.0)
        tokens = torch.tensor(said.ids)[:, None]
        logprobs = torch.log_softmax(scaled, -1).gather(-1, tokens)[:, 0].tolist()
        choice = {
            "index": 0,
            "finish_reason": "stop" if said.finished else "length",
            "prompt_token_ids": query,
            "token_ids": said.ids,
            "logprobs": {"token_logprobs": logprobs},
        }
        return 200, self.change({"model": name, "choices": [choice]}), {}

    def base(self) -> Any:
        """The model it was started with."""
        if self._base is None:
            self._base = load_policy(ModelSettings(name=str(self.root)), torch.float32).eval()
        return self._base

    def _with(self, folder: Path) -> Any:
        from peft import PeftModel

        whole = load_policy(ModelSettings(name=str(self.root)), torch.float32)
        return PeftModel.from_pretrained(whole, str(folder)).merge_and_unload().eval()


@contextmanager
def vllm_double(root: Path, **options) -> Iterator[VLLMDouble]:
    """Serve until the block ends."""
    double = VLLMDouble(root=root, **options)
    with serving(double):
        yield double
