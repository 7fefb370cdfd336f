"""PPO-ptx: a language-modelling loss beside PPO's in each optimiser step, and its measure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ppo.config import PPOStage
from ppo.logprobs import token_stats
from ppo.ptx_config import PtxSettings
from ppo.roles import Batch, Roles, before_tokens, response_tokens
from ppo.rollout import micro_batches
from workbench.chat import example_ids
from workbench.data import Kind, load, split_by_prompt
from workbench.errors import UserError
from workbench.logs import console
from workbench.models import most_positions
from workbench.scorer import pad_right

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

ACCEPTS: tuple[Kind, ...] = ("language_modeling", "prompt_completion")


class Text(NamedTuple):
    """A text as tokens.

    Attributes:
        ids: its tokens.
        counts: 1 for each token whose likelihood counts; 0 for the first, which nothing predicts.
    """

    ids: list[int]
    counts: list[int]


class Ptx:
    """Texts that the policy goes on predicting while it is trained by PPO.

    Ouyang et al. 2022, eq. 2: the gradient of γ · E[-log π(x)] joins that of PPO in each optimiser
    step. Here the expectation is the mean over the batch's tokens.

    Attributes:
        held_out: texts to measure what is forgotten.
    """

    def __init__(
        self,
        settings: PtxSettings,
        texts: Sequence[Text],
        held_out: Sequence[Text],
        roles: Roles,
        *,
        seed: int,
        process: int = 0,
        world: int = 1,
    ) -> None:
        """Take texts.

        Args:
            settings: weight and sizes.
            texts: to learn from.
            held_out: to measure.
            roles: the models; the policy learns.
            seed: of the order of the texts.
            process: number of this process.
            world: number of processes.

        Raises:
            UserError: when the batch cannot be divided among the processes.
        """
        if settings.batch_size % world:
            raise UserError(
                f"ptx.batch_size={settings.batch_size}: must divide by the number of processes, "
                f"{world}, exactly"
            )
        self.settings, self.roles = settings, roles
        self.texts, self.held_out = list(texts), list(held_out)[: settings.eval_texts]
        self.seed, self.process, self.world = seed, process, world
        self.position = 0
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def learns(self) -> bool:
        """Whether the loss has any weight."""
        return self.settings.coef > 0

    def start(self, update: int, steps: int) -> None:
        """Go to the first text of an update with so many optimiser steps.

        The place depends on nothing else, so a resumed run learns the same texts.
        """
        self.position = update * steps * self.settings.batch_size

    def backward(self, accelerator: "Accelerator") -> float:
        """Add the gradients of γ times the loss on the next batch of texts to those of the policy.

        Call it where gradients do not yet travel between processes, in the autocast of the step.

        Returns:
            The loss, without γ: nats a token, over all processes.
        """
        batch = self._next_batch()
        tokens = sum(sum(text.counts) for text in batch)
        share = self.settings.batch_size // self.world
        own = batch[self.process * share : (self.process + 1) * share]
        total = torch.zeros((), device=self.roles.device, dtype=torch.float64)
        # Gradients are averaged over processes, and wanted summed.
        scale = self.settings.coef * self.world / tokens
        for index in micro_batches([len(text.ids) for text in own], self.settings.micro_batch_size):
            loss = self._summed_loss([own[i] for i in index])
            accelerator.backward(loss * scale)
            total += loss.detach().double()
        return float(accelerator.reduce(total, "sum")) / tokens

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the policy's loss on the held-out texts, nats a token."""
        total = 0.0
        lengths = [len(text.ids) for text in self.held_out]
        with self.roles.autocast():
            for index in micro_batches(lengths, self.settings.micro_batch_size):
                total += float(self._summed_loss([self.held_out[i] for i in index]))
        return total / sum(sum(text.counts) for text in self.held_out)

    def _next_batch(self) -> list[Text]:
        """Return the texts of one optimiser step, of all processes; each once before any twice."""
        count, chosen = len(self.texts), []
        for position in range(self.position, self.position + self.settings.batch_size):
            number, place = divmod(position, count)
            if self._order[0] != number:
                generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
                self._order = number, torch.randperm(count, generator=generator).tolist()
            chosen.append(self.texts[self._order[1][place]])
        self.position += self.settings.batch_size
        return chosen

    def _summed_loss(self, texts: Sequence[Text]) -> torch.Tensor:
        roles = self.roles
        ids, mask = pad_right([text.ids for text in texts], roles.device)
        counts, _ = pad_right([text.counts for text in texts], roles.device)
        rows, columns = counts.nonzero().T
        batch = Batch(ids, mask, rows, columns, roles.activations(ids, mask))
        hidden = before_tokens(roles.trained.policy, batch)
        # At temperature 1, whatever the rollout's is: the texts were not sampled.
        stats = token_stats(hidden, roles.trained.lm_head, response_tokens(batch), 1.0)
        return -stats.logprobs.sum()


def load_ptx(
    config: PPOStage,
    tokenizer: "PreTrainedTokenizerBase",
    roles: Roles,
    accelerator: "Accelerator",
) -> Ptx | None:
    """Read the texts that `config.ptx` names; None where it names none.

    Raises:
        UserError: when they cannot be read, or are longer than the model can see.
    """
    settings = config.ptx
    if settings.data is None:
        return None
    _check_positions(settings, roles, config.model.name)
    rows = load(settings.data, ACCEPTS, split=settings.split, limit=settings.limit).rows
    if settings.test is None:
        rows, held_out = split_by_prompt(rows, settings.test_fraction, config.run.seed)
    else:
        held_out = load(
            settings.test, ACCEPTS, split=settings.test_split, limit=settings.limit
        ).rows
    texts = encode(rows, tokenizer, settings.max_length, settings.data)
    kept = []
    if held_out:
        source = settings.test or f"{settings.data} (held out)"
        kept = encode(held_out, tokenizer, settings.max_length, source)
    return Ptx(
        settings,
        texts,
        kept,
        roles,
        seed=config.run.seed,
        process=accelerator.process_index,
        world=accelerator.num_processes,
    )


def encode(
    rows: Sequence[dict[str, object]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    source: str,
) -> list[Text]:
    """Encode rows, cut at a length; rows of which nothing counts are left out, and both are told.

    Raises:
        UserError: when no row is left.
    """
    texts, cut = [], 0
    for row in rows:
        ids, counts = example_ids(tokenizer, row)
        cut += len(ids) > max_length
        text = Text(ids[:max_length], [0, *counts[1:max_length]])
        if any(text.counts):
            texts.append(text)
    if not texts:
        raise UserError(
            f"{source}: no text has a token to learn within ptx.max_length={max_length}; raise it"
        )
    if cut or len(texts) < len(rows):
        console.print(
            f"ppo: {source}: cut {cut} texts at ptx.max_length={max_length} tokens, "
            f"left out {len(rows) - len(texts)}",
            markup=False,
        )
    return texts


def _check_positions(settings: PtxSettings, roles: Roles, name: str) -> None:
    positions = most_positions(roles.actor.config)
    if positions is not None and settings.max_length > positions:
        raise UserError(
            f"ptx.max_length={settings.max_length}: beyond the {positions} positions of {name}; "
            "lower it"
        )
