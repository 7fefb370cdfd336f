"""Samples of a run: answers of an update with what each was worth, as a parquet table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo.experience import Experience
from ppo.kl import kl_per_token
from ppo.reward_sources import Samples
from workbench.chat import decode
from workbench.files import write_bytes
from workbench.samples import update_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sample_rows(
    samples: Samples, experience: Experience, tokenizer: "PreTrainedTokenizerBase", limit: int
) -> list[dict[str, Any]]:
    """Return a row for each of the first answers of an update, whose prompts come in random order.

    Args:
        samples: the answers.
        experience: made of them.
        tokenizer: the policy's.
        limit: rows at most.

    Returns:
        Rows of `prompt`, `completion`, `reward/…` for each source, `score` (all of them combined),
        `kl` (nats, summed over the answer), `advantage` (mean over its tokens), `length` (tokens)
        and `finished`.
    """
    rollout = experience.rollout
    mask = rollout.response_mask
    lengths = mask.sum(-1)
    columns = {f"reward/{name}": part for name, part in rollout.parts.items()} | {
        "score": rollout.scores,
        "kl": (kl_per_token(rollout.logprobs, rollout.ref_logprobs) * mask).sum(-1),
        "advantage": (experience.advantages * mask).sum(-1) / lengths,
    }
    numbers = {name: column.float().tolist() for name, column in columns.items()}
    return [
        {
            "prompt": samples.queries[i].prompt,
            "completion": decode(tokenizer, response.ids),
            **{name: column[i] for name, column in numbers.items()},
            "length": len(response.ids),
            "finished": response.finished,
        }
        for i, response in enumerate(samples.responses[:limit])
    ]


def save_update(folder: Path, update: int, rows: list[dict[str, Any]]) -> None:
    """Write rows to `update_000012.parquet` in a folder; the same rows give the same bytes."""
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    write_bytes(folder / update_file(update), sink.getvalue().to_pybytes())
