"""Measures sampling in a process of its own: our loop, `generate`, or the matrix products alone.

`ppo_bench.py` starts it; it prints one line of JSON. Both ways of sampling draw from the model's
own distribution, no token ends an answer, and reading the prompts counts.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.ppo_watch import about

WAYS = ("native", "transformers", "products")
NO_TOKEN = -1


def main() -> None:
    """Measure one way at every batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="models and prompts, as ppo_models.py left them")
    parser.add_argument("--way", choices=WAYS, default="native")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--response", type=int, default=48)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    model = load(given)
    ways = {"native": native, "transformers": generated, "products": products}
    found = {}
    for batch in given.batches:
        prompts = read_prompts(given.folder, batch)
        with torch.inference_mode():
            work = ways[given.way](model, prompts)
            work(2)  # kernels are chosen and memory is asked for
            tokens, wall, cpu = _timed(partial(work, given.response), given.device)
        found[str(batch)] = {"tokens": tokens, "wall_s": wall, "cpu_s": cpu}
    sys.stdout.write(json.dumps({"batches": found, **about()}) + "\n")


def load(given: argparse.Namespace) -> Any:
    """Return the policy in bf16."""
    from workbench.models import ModelSettings, load_policy

    model = load_policy(ModelSettings(name=str(given.folder / "policy")), torch.bfloat16)
    return model.eval().to(given.device)


def read_prompts(folder: Path, count: int) -> list[list[int]]:
    """Return so many of the prepared prompts."""
    found: list[list[int]] = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return found[:count]


def native(model: Any, prompts: list[list[int]]) -> Callable[[int], int]:
    """Return our loop: from new tokens for each prompt to all tokens sampled."""
    from workbench.generation import SamplingSettings, generate

    def work(length: int) -> int:
        settings = SamplingSettings(max_new_tokens=length, batch_size=len(prompts))
        answers = generate(model, prompts, settings, eos_token_id=NO_TOKEN)
        return sum(len(answer.ids) for answer in answers)

    return work


def generated(model: Any, prompts: list[list[int]]) -> Callable[[int], int]:
    """Return `generate` of transformers, as `native`."""
    ids = torch.tensor(prompts, device=model.device)
    mask = torch.ones_like(ids)
    model.generation_config.eos_token_id = None

    def work(length: int) -> int:
        sequences = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=True,
            temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
        )  # fmt: skip
        return int(sequences[:, ids.shape[1] :].numel())

    return work


def products(model: Any, prompts: list[list[int]]) -> Callable[[int], int]:
    """Return the products of states with all weight matrices, once for each new token.

    Nothing else is done: no attention, no norms, no sampling, no reading of the prompts. No loop
    over this model that computes one token a step can be faster.
    """
    weights = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    states = {
        width: torch.randn(len(prompts), width, device=model.device, dtype=weights[0].dtype)
        for width in {weight.shape[1] for weight in weights}
    }

    def work(length: int) -> int:
        for _ in range(length):
            for weight in weights:
                functional.linear(states[weight.shape[1]], weight)
        return length * len(prompts)

    return work


def _timed(work: Callable[[], int], device: str) -> tuple[int, float, float]:
    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = work()
    wait()
    return tokens, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
