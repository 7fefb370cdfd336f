"""Stage 1: supervised fine-tuning with `trl.SFTTrainer`."""

from itertools import islice
from pathlib import Path
from typing import Any

from sft.config import SFTStage
from sft.data import Tokenized, tokenize
from sft.trainer import DemonstrationTrainer, SFTArguments
from workbench.cards import model_card
from workbench.chat import decode, query_ids
from workbench.data import Kind, load_parts
from workbench.generation import generate
from workbench.logs import console, is_main_process
from workbench.models import freeze_lower_layers, load_policy, load_tokenizer, lora_config
from workbench.processes import agree, start
from workbench.run import StageRun
from workbench.trainer import (
    RunLog,
    SampleTable,
    WholeCheckpoints,
    save_model,
    train,
    trainer_arguments,
)

ACCEPTS: tuple[Kind, ...] = ("prompt_completion", "language_modeling")


def run(config: SFTStage) -> Path:
    """Fine-tune a model on demonstrations and return the run folder.

    The folder holds the best model by held-out loss, `metrics.jsonl`, samples and a summary. A
    finished run of the same configuration and inputs is left as it is; an interrupted one continues
    from its newest whole checkpoint.

    Raises:
        UserError: for data, models or settings the stage cannot use.
    """
    import torch
    from transformers import set_seed

    start("sft")
    stage = StageRun("sft", config, config.inputs())
    if agree(stage.finished, f"{stage.path}, finished or not"):
        console.print(f"sft: {stage.path} is up to date", markup=False)
        return stage.path
    set_seed(config.run.seed)
    tokenizer = load_tokenizer(config.model.name, config.model)
    data = config.data
    parts = load_parts(data, ACCEPTS, config.run.seed, stage.data)

    def encode(part: str, source: str) -> Tokenized:
        folder = stage.data / part if data.streaming else None
        rows = getattr(parts, part)
        return tokenize(rows, tokenizer, config.sft, source, data.drop_long_rows, folder)

    train_set, test_set = encode("train", data.train), encode("held_out", data.test or data.train)
    too_long = train_set.too_long + test_set.too_long
    _report_left_out(too_long, parts.skipped, config.sft.max_length)

    quantized = config.model.load_in_4bit
    model = load_policy(config.model, None if quantized else torch.float32)
    freeze_lower_layers(model, config.model.train_top_layers)
    arguments = trainer_arguments(stage, config.sft, config.model.precision, len(train_set.dataset))
    trainer = DemonstrationTrainer(
        model=model,
        args=SFTArguments(
            **arguments,
            max_length=config.sft.max_length,
            packing=config.sft.packing,
            eval_packing=False,
            completion_only_loss=True,  # our mask already says which tokens count
        ).of(stage),
        train_dataset=train_set.dataset,
        eval_dataset=test_set.dataset,
        processing_class=tokenizer,
        peft_config=lora_config(config.model.lora, "CAUSAL_LM"),
        callbacks=[RunLog(stage), WholeCheckpoints()],
    )
    asked = (row["prompt"] for row in parts.held_out if "prompt" in row)
    prompts = list(islice(asked, config.sft.sample_prompts))
    if prompts:
        queries = [query_ids(tokenizer, prompt) for prompt in prompts]

        def sample(policy: Any) -> list[dict[str, Any]]:
            if config.model.lora.enabled:  # peft's wrapper hides the parts that generation calls
                policy = policy.get_base_model()
            with torch.autocast(policy.device.type, torch.bfloat16, enabled=arguments["bf16"]):
                answers = generate(
                    policy,
                    queries,
                    config.sampling,
                    eos_token_id=tokenizer.eos_token_id,
                    seed=config.run.seed,
                )
            return [
                {
                    "prompt": prompt,
                    "completion": decode(tokenizer, answer.ids),
                    "finished": answer.finished,
                }
                for prompt, answer in zip(prompts, answers, strict=True)
            ]

        trainer.add_callback(SampleTable(stage, sample))
    train(trainer, stage)
    metrics = trainer.evaluate()
    summary = {
        "eval_loss": metrics["eval_loss"],
        "train_rows": len(train_set.dataset),
        "test_rows": len(test_set.dataset),
        "too_long": too_long,
        "skipped": len(parts.skipped),
        "steps": trainer.state.global_step,
    }
    what = (
        f"`{config.model.name}` fine-tuned on {summary['train_rows']} demonstrations "
        f"(`{config.data.train}`)."
    )
    save_model(
        stage, trainer, tokenizer, model_card(stage, what, "CausalLM", config.model.name, summary)
    )
    stage.finish(summary)
    if is_main_process():
        console.print(
            f"sft: held-out loss {summary['eval_loss']:.3f}; model in {stage.model}", markup=False
        )
    return stage.path


def _report_left_out(too_long: int, skipped: tuple[str, ...], max_length: int) -> None:
    if too_long:
        console.print(
            f"sft: left out {too_long} rows over sft.max_length={max_length} tokens", markup=False
        )
    if skipped:
        console.print(
            f"sft: skipped {len(skipped)} bad rows, the first: {skipped[0]}", markup=False
        )
