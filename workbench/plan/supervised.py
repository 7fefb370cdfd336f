"""What the two stages on the Hugging Face Trainer hold in memory, and what their steps take."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from workbench.errors import UserError
from workbench.models import LoraSettings, freeze_lower_layers, lora_config
from workbench.plan.live import Live
from workbench.plan.memory import (
    Part,
    Request,
    StageMemory,
    from_few,
    model_settings,
    prepare_gradients,
    tensors,
    training_parts,
)
from workbench.plan.skeleton import Dataless, with_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

STEP = "step"
Make = Callable[["PreTrainedConfig", torch.dtype], "PreTrainedModel"]
Loss = Callable[[Any, Request, int], torch.Tensor]


class TrainerMemory(StageMemory):
    """The memory of `rlhf sft` or `rlhf reward`: one model, all of whose weights are float32."""

    phases = (STEP,)

    def __init__(
        self,
        request: Request,
        make: Make,
        task: Literal["CAUSAL_LM", "SEQ_CLS"],
        loss: Loss,
        stage: str,
    ) -> None:
        """Count what is held.

        Args:
            request: what is planned.
            make: the stage's model, from a config.
            task: its kind, as PEFT calls it.
            loss: of a model on so many rows.
            stage: sft or reward, whose settings these are.
        """
        super().__init__(request)
        self.make, self.task, self.loss, self.stage = make, task, loss, stage
        counts, item = request.counts, request.dtype.itemsize
        top = request.top_layers if request.layout == "shared_trunk" else None
        self.top = top
        if top is not None and top > counts.depth:
            raise UserError(f"--top-layers {top}: the model has {counts.depth} layers")
        model, seen = self._model(request.config, top), set[int]()
        self.trained, learned = tensors(model, seen, trained=True)
        some_frozen = any(not weight.requires_grad for weight in model.parameters())
        frozen = tensors(model, seen)[1] if some_frozen else 0
        kind = "trained adapter" if request.layout == "lora" else "trained weights"
        self.parts = (Part("model", f"{kind}, float32", learned),)
        if frozen:
            self.parts += (Part("model", "frozen weights, float32", frozen),)
        self.parts += tuple(training_parts(self.trained, request))
        self.gathered = {STEP: item * (counts.total - counts.layers) + 2 * item * counts.layer}
        self.small: dict[int, tuple[Any, Dataless]] = {}

    def kept(self, rows: int) -> int:  # noqa: ARG002
        """Return 0: nothing is."""
        return 0

    def most(self, rows: int) -> int:
        """Return all rows."""
        return rows

    def settings(
        self,
        rows: int,
        micro: int,
        sampled: int | None,  # noqa: ARG002
        passes: int,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Return the settings of a run as it is planned."""
        request, stage = self.request, self.stage
        return model_settings(request) | {
            "model.lora.enabled": "true" if request.layout == "lora" else "false",
            f"{stage}.max_length": request.tokens,
            f"{stage}.gradient_checkpointing": "true" if request.checkpointing else "false",
            f"{stage}.batch_size": micro,
            f"{stage}.gradient_accumulation": -(-rows // micro),
        }

    def peaks(self, phase: str, rows: int) -> dict[str, int]:  # noqa: ARG002
        """Return the bytes that a step takes beside what is held, at the peak of each window."""
        depth, top = self.request.counts.depth, self.top
        if top is None:
            return from_few(lambda layers: self._step(layers, None, rows), depth)
        return from_few(lambda layers: self._step(min(layers + 1, depth), layers, rows), top)

    def _model(self, config: "PreTrainedConfig", top: int | None) -> Any:
        """Return the model on the meta device, ready to be trained."""
        request = self.request
        with torch.device("meta"):
            model: Any = self.make(config, torch.float32)
            freeze_lower_layers(model, top)
            if request.layout == "lora":
                from peft import get_peft_model

                settings = LoraSettings(enabled=True, r=request.lora_rank)
                model = get_peft_model(model, lora_config(settings, self.task))
        return model

    def _step(self, layers: int, top: int | None, rows: int) -> dict[str, int]:
        request = self.request
        if layers not in self.small:
            model, dataless = self._model(with_layers(request.config, layers), top), Dataless()
            dataless.take([model], request.dtype if request.sharding == "fsdp2" else None)
            model.train()
            if request.checkpointing:
                base = model.get_base_model() if request.layout == "lora" else model
                base.gradient_checkpointing_enable({"use_reentrant": False})
                base.enable_input_require_grads()
            self.small[layers] = model, dataless
        model, dataless = self.small[layers]
        plain = model.get_base_model() if request.layout == "lora" else model
        body = plain.base_model
        blocks = body.h if plain.config.model_type == "gpt2" else body.layers
        with dataless.mode:
            prepare_gradients(model)
            live = Live(0, packs=request.cpu)
            live.leave_out([model])
            with live:
                live.watch_layer(blocks[-2 if len(blocks) > 1 else -1])
                bf16 = request.dtype == torch.bfloat16
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = self.loss(plain, request, rows)
                loss.backward()  # type: ignore[no-untyped-call]
                del loss
        return dict(live.peaks)
