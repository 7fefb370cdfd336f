"""Models by name (hub id, folder, the embedded default), loaded safely, with LoRA and 4-bit."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench import embedded
from workbench.config import option
from workbench.errors import UserError
from workbench.logs import quiet_transformers
from workbench.served import is_served

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["auto", "bf16", "fp32"]
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTED_CONFIG = (
    "adapted_config.json"  # beside an adapter: its base's config and what training added
)
CLASSIFIER = "ForSequenceClassification"
# What some families do to logits after the head (Gemma 2, Cohere, Granite), and what does nothing.
RESCALED: dict[str, float | None] = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
}


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al. 2021)."""

    enabled: bool = option(False, "train LoRA adapters instead of the weights themselves")
    r: int = option(16, "rank of the adapters (Hu et al. 2021 §7.2: 4 to 64 behave alike)")
    alpha: int = option(32, "scaling; the update is multiplied by alpha / r")
    dropout: float = option(
        0.0, "dropout inside the adapters; 0 keeps PPO's ratio exactly 1 at first"
    )
    target_modules: list[str] | str = option(
        "all-linear", "which modules get adapters (QLoRA, Dettmers et al. 2023: all linear layers)"
    )

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.r < 1:
            return "r", "the rank must be at least 1"
        if not 0 <= self.dropout < 1:
            return "dropout", "must be in [0, 1)"
        return None


@dataclass
class ModelSettings:
    """Which model a stage starts from and which part of it is trained."""

    name: str = option(
        embedded.NAME, "hub id, local folder, or the embedded 'smollm2-135m-instruct'"
    )
    revision: str | None = option(None, "hub revision (branch, tag or commit)")
    precision: Precision = option(
        "auto", "compute type; auto = bf16 where the machine has it; trained weights stay fp32"
    )
    train_top_layers: int | None = option(
        None, "train only this many top layers and the head, freeze the rest; null = all"
    )
    lora: LoraSettings = option(LoraSettings, "low-rank adapters")
    load_in_4bit: bool = option(False, "NF4 quantised base weights (needs bitsandbytes and a GPU)")
    attn_implementation: str | None = option(None, "attention kernel, e.g. sdpa, flash_attention_2")
    trust_remote_code: bool = option(
        False, "run code that comes with the model; off unless asked for"
    )
    allow_pickle: bool = option(False, "also load pickled .bin weights, which can run code")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.train_top_layers is not None and self.train_top_layers < 1:
            return "train_top_layers", "must be at least 1, or null for all"
        if self.train_top_layers is not None and self.lora.enabled:
            return "train_top_layers", "choose either the top layers or LoRA, not both"
        if self.load_in_4bit and not self.lora.enabled:
            return (
                "load_in_4bit",
                "4-bit weights cannot be trained; set model.lora.enabled=true as well",
            )
        return None


def locate(name: str) -> str:
    """Return what `from_pretrained` needs for a model name: a folder or a hub id.

    Raises:
        UserError: for a path that does not exist or holds no model, and a served model.
    """
    if name == embedded.NAME:
        return str(embedded.embedded_model())
    if is_served(name):
        raise UserError(
            f"{name}: a served model answers prompts and no more, but its weights, tokens or "
            "probabilities are needed here; give its folder or hub id"
        )
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise UserError(
                f"{name}: no config.json or adapter_config.json in this folder; is it a model?"
            )
        return str(path)
    if path.is_file():
        raise UserError(f"{name}: a model is a folder, this is a file")
    if name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1:
        raise UserError(
            f"{name}: no such folder; train it first, or see `rlhf models` for what is here"
        )
    return name


def load_tokenizer(name: str, settings: ModelSettings | None = None) -> "PreTrainedTokenizerBase":
    """Load a tokenizer; a missing pad token becomes EOS, safe as we carry explicit masks."""
    from transformers import AutoTokenizer

    quiet_transformers()
    settings = settings or ModelSettings(name=name)
    where = locate(name)
    with _explained(name):
        base = _adapter_base(where)
        tokenizer = AutoTokenizer.from_pretrained(
            where
            if base is None or (Path(where) / "tokenizer_config.json").is_file()
            else locate(base),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name}: the tokenizer has no EOS token, so no answer could ever end; set one"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(settings: ModelSettings, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """Load a causal language model; a PEFT adapter folder is merged into its base.

    Args:
        settings: which model and how.
        dtype: type of the weights; None takes the compute type of `settings.precision`.
    """
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, settings, dtype)
    check_plain_logits(model, settings.name)
    return model


def check_plain_logits(model: "PreTrainedModel", name: str) -> None:
    """Refuse a model whose config says that its logits are more than what its head gives.

    Args:
        model: causal language model.
        name: under which the user knows it.

    Raises:
        UserError: names the family and the setting.
    """
    for key, neutral in RESCALED.items():
        value = model.config.get_text_config(decoder=True).to_dict().get(key, neutral)
        if value not in (None, neutral):
            raise UserError(
                f"{name}: rescales its logits after the head, as {model.config.model_type} models "
                f"do ({key}={value}), which is not done here, so that its probabilities would be "
                "wrong; use a model without it"
            )


def most_positions(config: "PreTrainedConfig") -> int | None:
    """Return how many tokens a model can see, or None where its config sets no bound."""
    sizes = config.get_text_config(decoder=True).to_dict()
    positions: int | None = sizes.get("max_position_embeddings", sizes.get("n_positions"))
    return positions


def load_scorer(settings: ModelSettings, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """Load a sequence classifier with one output; a causal model gets a fresh head.

    The head's weights are drawn from N(0, 1/(d+1)) as in Ziegler et al. 2019, with the global torch
    generator.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    with suppress_seqcls_warning():
        model = _load(AutoModelForSequenceClassification, settings, dtype, num_labels=1)
    # The architectures are those of the saved weights, so a hub id is told apart as well.
    if not is_reward_model(settings.name) and CLASSIFIER not in str(model.config.architectures):
        head = model.score.weight
        torch.nn.init.normal_(head, std=(head.shape[1] + 1) ** -0.5)
    adapted = Path(locate(settings.name)) / ADAPTED_CONFIG
    if adapted.is_file():  # the config above is the base's; the normaliser stands in the adapter's
        with _explained(settings.name):
            stored = json.loads(adapted.read_text(encoding="utf-8"))
        kept = [key for key in ("reward_mean", "reward_std") if key in stored]
        model.config.update({key: stored[key] for key in kept})
    return model


def is_reward_model(name: str) -> bool:
    """Return whether a local folder holds a trained sequence classifier, or the adapter of one."""
    folder = Path(locate(name))
    if (folder / "adapter_config.json").is_file():
        return '"SEQ_CLS"' in (folder / "adapter_config.json").read_text(encoding="utf-8")
    config = folder / "config.json"
    return config.is_file() and CLASSIFIER in config.read_text(encoding="utf-8")


def compute_dtype(precision: Precision) -> "torch.dtype":
    """Return the torch type a precision stands for on this machine."""
    import torch

    if precision == "fp32":
        return torch.float32
    if precision == "bf16" or not torch.cuda.is_available() or torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def freeze_lower_layers(model: "PreTrainedModel", train_top_layers: int | None) -> None:
    """Freeze everything but the top layers, the final norm and a classification head.

    Raises:
        UserError: when the model has fewer layers than asked for.
    """
    if train_top_layers is None:
        return
    layers, norm = decoder_layers(model), final_norm(model)
    if train_top_layers > len(layers):
        raise UserError(
            f"model.train_top_layers={train_top_layers}: the model has {len(layers)} layers; "
            "use null to train all"
        )
    model.requires_grad_(False)
    for layer in layers[len(layers) - train_top_layers :]:
        layer.requires_grad_(True)
    norm.requires_grad_(True)
    if type(model).__name__.endswith(CLASSIFIER):
        model.score.requires_grad_(True)


def decoder_layers(model: "PreTrainedModel") -> Any:
    """Return the list of decoder blocks: `layers` in Llama and Qwen styles, `h` in GPT-2's."""
    return model.base_model.h if model.config.model_type == "gpt2" else model.base_model.layers


def final_norm(model: "PreTrainedModel") -> Any:
    """Return the norm after the last block: `norm` in Llama and Qwen styles, `ln_f` in GPT-2's."""
    return model.base_model.ln_f if model.config.model_type == "gpt2" else model.base_model.norm


def lora_config(lora: LoraSettings, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> Any:
    """Return the `peft.LoraConfig`, or None when LoRA is off."""
    if not lora.enabled:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=task,
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )


def _load(
    auto: Any, settings: ModelSettings, dtype: "torch.dtype | None", **extra: Any
) -> "PreTrainedModel":
    quiet_transformers()
    where = locate(settings.name)
    kwargs: dict[str, Any] = {
        "revision": settings.revision,
        "trust_remote_code": settings.trust_remote_code,
        "use_safetensors": None if settings.allow_pickle else True,
        "dtype": dtype or compute_dtype(settings.precision),
        **extra,
    }
    if settings.attn_implementation:
        kwargs["attn_implementation"] = settings.attn_implementation
    if settings.load_in_4bit:
        kwargs["quantization_config"] = _four_bit()
    with _explained(settings.name):
        base = _adapter_base(where)
        pickled = base is not None and not (Path(where) / ADAPTER_WEIGHTS).is_file()
        if pickled and not settings.allow_pickle:
            raise UserError(
                f"{settings.name}: no {ADAPTER_WEIGHTS} here; pickled weights can run code - "
                "convert them, or set model.allow_pickle=true if you trust the source"
            )
        model = auto.from_pretrained(where if base is None else locate(base), **kwargs)
        if base is not None:
            from peft import PeftConfig, PeftModel

            adapter = PeftConfig.from_pretrained(where)
            if adapter.task_type == "CAUSAL_LM" and not model.can_generate():
                adapter.task_type = None  # a policy's adapter below a reward model's fresh head
            model = PeftModel.from_pretrained(model, where, config=adapter).merge_and_unload()
    # Sampling settings that ship with a model (top-k, temperature) would bias rollouts; ours are
    # explicit.
    if model.can_generate():
        generation = model.generation_config
        generation.do_sample, generation.temperature, generation.top_k, generation.top_p = (
            False,
            None,
            None,
            None,
        )
    return model


def _adapter_base(where: str) -> str | None:
    if not (Path(where) / "adapter_config.json").is_file():
        return None
    from peft import PeftConfig

    base: str = PeftConfig.from_pretrained(where).base_model_name_or_path
    return base


def _four_bit() -> Any:
    import importlib.util

    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None or not torch.cuda.is_available():
        raise UserError(
            "model.load_in_4bit=true: needs the bitsandbytes package and a GPU; "
            "pip install bitsandbytes on a GPU machine, or set model.load_in_4bit=false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


class _explained:  # noqa: N801 - reads as a word in `with _explained(name):`
    """Turn the loaders' many exceptions into one line that names the model."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, UserError | KeyboardInterrupt | MemoryError):
            return
        text = str(error)
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        if "trust_remote_code" in text:
            raise UserError(
                f"{self.name}: this model runs code of its own; read it, "
                "then set model.trust_remote_code=true"
            ) from None
        if (
            "safetensors" in text
            and "SafetensorError" not in type(error).__name__
            and "no file named" in text
        ):
            raise UserError(
                f"{self.name}: no safetensors weights here; pickled weights can run code - "
                "convert them, or set model.allow_pickle=true if you trust the source"
            ) from None
        if isinstance(error, Exception):  # a damaged config fails in many ways
            hint = ""
            if not Path(self.name).exists() and self.name != embedded.NAME:
                hint = (
                    "; no folder of that name, and the hub did not give it; "
                    f"offline, use '{embedded.NAME}'"
                )
            raise UserError(f"{self.name}: cannot load this model ({first[:300]}){hint}") from None
