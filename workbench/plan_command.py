"""The `rlhf plan` command: memory, speed and batch sizes of a stage, before anything is loaded."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from workbench import launch
from workbench.errors import UserError
from workbench.runs import safe_text

if TYPE_CHECKING:
    from workbench.plan.devices import Devices, Rates
    from workbench.plan.fitting import Fit
    from workbench.plan.memory import Request, StageMemory
    from workbench.plan.speed import Speed

Layout = Literal["separate", "lora", "shared_trunk"]


def plan(
    model: Annotated[
        str, typer.Option(help="hub id, folder, or config.json file; weights are not needed")
    ],
    gpus: Annotated[
        str, typer.Option(help="devices: COUNTxSIZE such as 8x80GB, or cpu:24GB; GB or GiB each")
    ],
    stage: Annotated[
        Literal["ppo", "sft", "reward", "all"], typer.Option(help="which stage to plan")
    ] = "ppo",
    layout: Annotated[
        Layout, typer.Option(help="as model.layout; in sft and reward: all, LoRA, top layers")
    ] = "separate",
    top_layers: Annotated[
        int | None, typer.Option(help="layers trained, from the top", min=1, show_default=False)
    ] = None,
    reward: Annotated[
        Literal["whole", "adapter"] | None,
        typer.Option(
            help="the reward model in ppo --layout lora, as rlhf reward has left it; whole, unless "
            "--stage all plans an adapter",
            show_default=False,
        ),
    ] = None,
    lora_rank: Annotated[int, typer.Option(help="as model.lora.r", min=1)] = 16,
    batch_size: Annotated[
        int, typer.Option(help="rows of an update, over all devices", min=1)
    ] = 512,
    prompt_length: Annotated[int, typer.Option(help="tokens of a prompt", min=1)] = 512,
    response_length: Annotated[int, typer.Option(help="tokens of an answer", min=1)] = 256,
    ppo_epochs: Annotated[int, typer.Option(help="as ppo.num_ppo_epochs", min=1)] = 4,
    precision: Annotated[Literal["bf16", "fp32"], typer.Option(help="as model.precision")] = "bf16",
    sharding: Annotated[
        Literal["none", "fsdp2"], typer.Option(help="none: each device holds a whole copy")
    ] = "none",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="sft, reward: gradient_checkpointing")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="for tokens/s: h100, a100, l4, 4090 …", show_default=False)
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="for tokens/s: measure this machine, some seconds")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write the plan to this file too")
    ] = None,
) -> None:
    """Plan a stage from a model's config alone: memory by role, tokens/s, batch sizes that fit.

    A plan that does not fit is an answer too, with exit code 0.

    Example: `rlhf plan --model meta-llama/Llama-3.1-8B --gpus 8x80GB --layout lora`
    """
    from workbench.plan import skeleton
    from workbench.plan.devices import known_rates, measured_rates, read_devices

    devices = read_devices(gpus)
    _check(layout, top_layers, devices, sharding, batch_size, device, measure)
    if reward == "adapter" and layout != "lora":
        raise UserError(
            f"--reward adapter: with --layout {layout} the reward model is a whole one, or is made "
            "one; leave it out, or use --layout lora"
        )
    if reward is None:
        reward = "adapter" if stage == "all" and layout == "lora" else "whole"
    rates = () if measure else known_rates(devices, device)
    import torch

    config = skeleton.read_config(model)
    counts = skeleton.counts(config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and prompt_length + response_length > positions:
        raise UserError(
            f"--prompt-length {prompt_length} and --response-length {response_length}: the model "
            f"sees {positions} tokens; use shorter ones"
        )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if measure:
        if not devices.cpu and not torch.cuda.is_available():
            raise UserError(
                "--measure: no GPU is here; name one with --device, or plan for cpu:SIZE"
            )
        rates = (measured_rates(dtype, "cpu" if devices.cpu else "cuda"),)
    from workbench.plan.memory import Request

    request = Request(
        config, counts, layout, top_layers, lora_rank, prompt_length, response_length, dtype,
        devices.cpu, devices.count, sharding, checkpointing, reward,
    )  # fmt: skip
    console = Console(highlight=False, markup=False)
    console.print(
        safe_text(
            f"{model}: {config.model_type}, {counts.total:,} parameters, {counts.depth} layers; "
            f"layout {layout}{f', top {top_layers}' if top_layers else ''}, {precision}\n"
            f"{devices}, sharding {sharding}; {batch_size} rows an update, "
            f"prompts of {prompt_length} tokens, answers of {response_length}"
        ),
        soft_wrap=True,
    )
    stages = ("sft", "reward", "ppo") if stage == "all" else (stage,)
    found = {
        name: _one(console, name, request, devices, batch_size, rates, ppo_epochs)
        for name in stages
    }
    if json_file is not None:
        facts: dict[str, Any] = {
            "model": model,
            "model_type": config.model_type,
            "parameters": counts.total,
            "layers": counts.depth,
            "devices": dataclasses.asdict(devices),
            "sharding": sharding,
            "layout": layout,
            "top_layers": top_layers,
            "reward": reward,
            "precision": precision,
            "batch_size": batch_size,
            "prompt_length": prompt_length,
            "response_length": response_length,
        }
        text = json.dumps(facts | {"stages": found}, indent=2) + "\n"
        try:
            json_file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--json {json_file}: {error.strerror}; name a file that can be written"
            ) from None


def _check(
    layout: str,
    top_layers: int | None,
    devices: "Devices",
    sharding: str,
    batch_size: int,
    device: str | None,
    measure: bool,
) -> None:
    if layout == "shared_trunk" and top_layers is None:
        raise UserError("--layout shared_trunk: needs --top-layers, the layers each role trains")
    if layout == "separate" and top_layers is not None:
        raise UserError(
            "--top-layers: with --layout separate all layers are trained; use shared_trunk or lora"
        )
    if sharding == "fsdp2" and devices.count == 1:
        raise UserError("--sharding fsdp2: one device has nobody to share with; use none")
    if batch_size % devices.count:
        raise UserError(
            f"--batch-size {batch_size}: must divide among {devices.count} devices exactly"
        )
    if device is not None and measure:
        raise UserError("--measure: --device names another source of rates; use one of the two")
    if device is not None and devices.cpu:
        raise UserError("--device: names a GPU, and --gpus a CPU; use --measure for a CPU")


def _one(
    console: Console,
    stage: str,
    request: "Request",
    devices: "Devices",
    batch_size: int,
    rates: "tuple[Rates, ...]",
    passes: int,
) -> dict[str, Any]:
    """Print the plan of a stage and return it as JSON."""
    from workbench.plan import display
    from workbench.plan.fitting import cheapest, fit

    if stage != "ppo" and request.layout == "lora" and request.top_layers is not None:
        # Those stages know either adapters or top layers.
        request = dataclasses.replace(request, top_layers=None)
    if stage == "ppo" and request.checkpointing:
        request = dataclasses.replace(request, checkpointing=False)
    memory: StageMemory = launch.stage_memory(stage, request)
    rows = batch_size // devices.count
    found = fit(memory, devices, rows)
    change = None
    if not found.fits:
        change = cheapest(
            request, devices, rows, lambda each: launch.stage_memory(stage, each),
            scored=stage == "ppo",
        )  # fmt: skip
    speeds = [_speed(stage, memory, found, rows, each, passes) for each in rates]
    settings = memory.settings(rows, found.micro_batch, found.rollout_batch, passes)
    said = display.sentence(stage, found, devices, settings, change)
    console.print()
    console.print(stage, style="bold")
    display.show_memory(console, memory, found, devices)
    console.print()
    display.show_speed(console, speeds)
    console.print()
    console.print(said, soft_wrap=True)
    return {
        "parts": [dataclasses.asdict(part) for part in memory.parts],
        "trained_parameters": memory.trained,
        "fit": dataclasses.asdict(found),
        "settings": settings if found.fits else None,
        "cheapest_change": change,
        "speed": [dataclasses.asdict(speed) for speed in speeds],
        "sentence": said,
    }


def _speed(
    stage: str, memory: "StageMemory", fit: "Fit", rows: int, rates: "Rates", passes: int
) -> "Speed":
    from workbench.plan.speed import ppo_speed, trainer_speed

    request = memory.request
    if stage == "ppo":
        weights = (request.counts.layers + request.counts.head) * request.dtype.itemsize
        return ppo_speed(request, rates, rows, fit.rollout_batch or 1, passes, weights)
    sequences = rows if stage == "sft" else 2 * rows
    return trainer_speed(request, rates, sequences, head=stage == "sft")
