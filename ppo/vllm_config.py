"""Settings of rollouts by vLLM."""

from dataclasses import dataclass
from typing import Literal

from workbench.config import option


@dataclass
class VLLMSettings:
    """How vLLM is reached, and how it gets the policy's weights."""

    mode: Literal["server", "colocate"] = option(
        "server",
        "server: one that was started beforehand is asked over HTTP; colocate: vLLM runs in each "
        "training process, on its GPU",
    )
    url: str = option(
        "http://127.0.0.1:8000/v1",
        "server: where its API begins, as in http://HOST:PORT/v1",
        free=True,
    )
    model: str | None = option(
        None,
        "server: its name for the model it was started with; null takes the only one it has",
        free=True,
    )
    weights: Literal["lora", "nccl"] = option(
        "lora",
        "server: lora writes the policy's adapter into a folder that the server reads (layout "
        "lora); nccl sends all weights from GPU to GPU (the other layouts)",
    )
    folder: str | None = option(
        None,
        "server: folder for adapters, which the server sees under the same path; null takes vllm/ "
        "in the run folder",
        free=True,
    )
    timeout: float = option(600.0, "server: seconds one answer may take", free=True)
    tries: int = option(
        8,
        "server: times that a request is sent; the waits in between double from half a second on, "
        "so that 8 last a minute",
        free=True,
    )
    max_difference: float = option(
        0.1,
        "the run stops when the log-probabilities vLLM reports differ from the policy's own by "
        "more nats per token than this, on average over the first answers of a rollout: then it "
        "has other weights",
        free=True,
    )
    gpu_memory: float = option(0.3, "colocate: vLLM's share of each GPU's memory", free=True)
    group_port: int = option(51216, "nccl: port on which trainer and server meet", free=True)

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if not self.url.startswith(("http://", "https://")):
            return "url", "must be the address of a server, as in http://HOST:PORT/v1"
        for key in ("timeout", "tries", "max_difference"):
            if getattr(self, key) <= 0:
                return key, "must be greater than 0"
        if not 0 < self.gpu_memory < 1:
            return "gpu_memory", "must be between 0 and 1"
        return None

    def misfit(self, layout: str) -> tuple[str, str] | None:
        """Return the setting that does not go with a layout, and why; None where all do."""
        lora = self.mode == "server" and self.weights == "lora"
        if lora and layout != "lora":
            return (
                "weights",
                f"model.layout={layout} has no adapter to send; use model.layout=lora, or on GPUs "
                "rollout.vllm.weights=nccl",
            )
        if not lora and layout == "lora":
            return (
                "mode" if self.mode == "colocate" else "weights",
                "with model.layout=lora the adapter is sent; use rollout.vllm.mode=server and "
                "rollout.vllm.weights=lora",
            )
        return None
