"""Comparing models on the same prompts: gold, paired differences, wins, KL, variety and length."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chat import Prompt, as_messages, decode, query_ids
from workbench.errors import UserError
from workbench.files import write_text
from workbench.generation import Response, SamplingSettings, generate
from workbench.judge import GoldJudge, Verdict
from workbench.likelihood import answer_logprobs
from workbench.logs import console
from workbench.models import ModelSettings, load_policy, load_tokenizer
from workbench.scorer import RewardModel
from workbench.statistics import (
    Estimate,
    best_of_n_kl,
    bootstrap_mean,
    distinct_n,
    length_controlled_win_rate,
    paired_bootstrap,
    win_tie_loss,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GREEDY, SAMPLED = "greedy", "sampled"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        models: name of each contender to hub id, folder or embedded model.
        reference: the contender KL is measured to, and best-of-n samples from; None for neither.
        reward_model: picks the best of n; None for no best-of-n.
        best_of: the n's.
        sampling: length and batch size; temperature is that of the sampled answers.
        seed: of sampling and bootstrap.
    """

    models: Mapping[str, str]
    reference: str | None = None
    reward_model: str | None = None
    best_of: tuple[int, ...] = ()
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0


@dataclass(frozen=True)
class Answers:
    """One contender's answers to all prompts; `kl` per answer in nats where it was measured."""

    responses: list[Response]
    texts: list[str]
    verdicts: list[Verdict]
    kl: list[float] | None

    @property
    def gold(self) -> list[float]:
        """Gold score of each answer."""
        return [verdict.gold for verdict in self.verdicts]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(response.ids) for response in self.responses]


def compare(plan: Plan, rows: Sequence[dict[str, Any]], judge: GoldJudge) -> dict[str, Any]:
    """Answer every prompt with every contender, greedily and sampled, and compare pair by pair.

    Args:
        plan: contenders and how they answer.
        rows: prompts with `prompt` and, where known, `id` and `category`.
        judge: gives the gold scores.

    Returns:
        `prompts`, `contenders`, `answers`, `table` and `differences`, ready for JSON; see
        docs/formats.md.

    Raises:
        UserError: with fewer than two contenders or prompts, or an unknown reference.
    """
    if len(plan.models) < 2:
        raise UserError(
            "compare: name at least two models, "
            "e.g. base=smollm2-135m-instruct ppo=runs/demo/ppo/model"
        )
    if len(rows) < 2:
        raise UserError("compare: at least two prompts are needed for an interval")
    if plan.reference is not None and plan.reference not in plan.models:
        raise UserError(
            f"compare: --reference {plan.reference} is not one of {', '.join(plan.models)}"
        )
    prompts: list[Prompt] = [row["prompt"] for row in rows]
    answers: dict[str, dict[str, Answers]] = {SAMPLED: {}, GREEDY: {}}
    reference, vocabulary = None, None
    # The reference goes first: the others' KL is measured against it.
    for name in sorted(plan.models, key=lambda n: n != plan.reference):
        settings = ModelSettings(name=plan.models[name])
        model, tokenizer = load_policy(settings), load_tokenizer(settings.name)
        queries = [query_ids(tokenizer, prompt) for prompt in prompts]
        if name == plan.reference:
            reference, vocabulary = model, tokenizer.get_vocab()
        for decoding, temperature in ((SAMPLED, plan.sampling.temperature), (GREEDY, 0.0)):
            responses = generate(
                model,
                queries,
                replace(plan.sampling, temperature=temperature),
                eos_token_id=tokenizer.eos_token_id,
                seed=plan.seed,
                desc=f"compare: {name}, {decoding}",
            )
            kl = None
            # Only answers drawn from a model estimate its KL. Under another vocabulary the same
            # ids are other words.
            drawn = decoding == SAMPLED and plan.sampling.temperature == 1.0
            if drawn and reference is not None and tokenizer.get_vocab() == vocabulary:
                ids = [response.ids for response in responses]
                own, ref = (
                    answer_logprobs(model, queries, ids),
                    answer_logprobs(reference, queries, ids),
                )
                kl = [sum(p) - sum(q) for p, q in zip(own, ref, strict=True)]
            answers[decoding][name] = _judged(judge, prompts, tokenizer, responses, kl)
        if name == plan.reference and plan.reward_model and plan.best_of:
            for n, responses in _best_of(plan, model, tokenizer, queries).items():
                answers[SAMPLED][f"best_of_{n}"] = _judged(
                    judge, prompts, tokenizer, responses, None
                )
    return _result(plan, rows, answers)


def print_table(result: dict[str, Any]) -> None:
    """Print the result table and the paired differences."""
    from rich.table import Table

    for decoding in (SAMPLED, GREEDY):
        table = Table(
            title=f"{decoding} answers to {len(result['prompts'])} held-out prompts",
            title_justify="left",
        )
        for heading in ("model", "gold", "95 %", "KL", "tokens", "no EOS", "distinct-2"):
            table.add_column(
                heading, justify="left" if heading == "model" else "right", no_wrap=True
            )
        for name in result["contenders"]:
            row = result["table"][decoding].get(name)
            if row is None:
                continue
            low, high = row["gold_ci95"]
            table.add_row(
                name,
                f"{row['gold']:.3f}",
                f"{low:.3f}–{high:.3f}",
                "" if row["kl"] is None else f"{row['kl']:.1f}",
                f"{row['mean_tokens']:.1f}",
                f"{row['missing_eos']:.0%}",
                f"{row['distinct_2']:.3f}",
            )
        console.print(table)
    # As narrow as can be: where the output is no terminal, rich cuts all after 80 columns.
    for decoding in (SAMPLED, GREEDY):
        table = Table(title=f"paired differences, {decoding}", title_justify="left", box=None)
        table.add_column("pair", no_wrap=True)
        for heading in ("gold", "95 %", "wins", "95 %", "p", "at = length"):
            table.add_column(heading, justify="right", no_wrap=heading != "at = length")
        for row in result["differences"]:
            if row["decoding"] == decoding:
                table.add_row(
                    f"{row['a']} – {row['b']}",
                    f"{row['gold']:+.3f}",
                    f"{row['ci95'][0]:+.3f} {row['ci95'][1]:+.3f}",
                    f"{row['win_rate']:.0%}",
                    f"{row['win_rate_ci95'][0]:.0%}–{row['win_rate_ci95'][1]:.0%}",
                    f"{row['p_sign']:.1g}",
                    f"{row['length_controlled']['value']:.0%}",
                )
        console.print(table)


def write_comparison(result: dict[str, Any], path: Path) -> None:
    """Write the result as JSON."""
    write_text(path, json.dumps(result, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _judged(
    judge: GoldJudge,
    prompts: Sequence[Prompt],
    tokenizer: "PreTrainedTokenizerBase",
    responses: list[Response],
    kl: list[float] | None,
) -> Answers:
    texts = [decode(tokenizer, response.ids) for response in responses]
    return Answers(responses, texts, judge.score(prompts, texts, responses), kl)


def _best_of(
    plan: Plan, model: Any, tokenizer: "PreTrainedTokenizerBase", queries: list[list[int]]
) -> dict[int, list[Response]]:
    """Sample the largest n once; best of n is the reward model's favourite of the first n."""
    most = max(plan.best_of)
    responses = generate(
        model,
        [query for query in queries for _ in range(most)],
        plan.sampling,
        eos_token_id=tokenizer.eos_token_id,
        seed=plan.seed + 1,
        desc=f"compare: best of {most}",
    )
    scorer = RewardModel.load(ModelSettings(name=str(plan.reward_model)))
    scores = scorer.raw_answer_scores(
        [query for query in queries for _ in range(most)],
        [response.ids for response in responses],
        desc="compare: scoring the pool",
    )
    picked: dict[int, list[Response]] = {}
    for n in plan.best_of:
        starts = range(0, len(responses), most)
        picked[n] = [
            responses[max(range(start, start + n), key=scores.__getitem__)] for start in starts
        ]
    return picked


def _result(
    plan: Plan, rows: Sequence[dict[str, Any]], answers: dict[str, dict[str, Answers]]
) -> dict[str, Any]:
    names = list(plan.models)
    best = [name for name in answers[SAMPLED] if name not in plan.models]
    if best and plan.reference is not None:
        place = names.index(plan.reference) + 1
        names[place:place] = best
    categories = [str(row.get("category") or "") for row in rows]
    return {
        "prompts": [
            {
                "id": str(row.get("id", i)),
                "category": categories[i],
                "prompt": as_messages(row["prompt"])[-1]["content"],
            }
            for i, row in enumerate(rows)
        ],
        "contenders": names,
        "models": dict(plan.models),
        "answers": {
            decoding: {name: _answer_rows(found[name]) for name in names if name in found}
            for decoding, found in answers.items()
        },
        "table": {
            decoding: {
                name: _table_row(name, found[name], categories, plan.seed)
                for name in names
                if name in found
            }
            for decoding, found in answers.items()
        },
        "differences": [
            _difference(a, b, decoding, answers[decoding], plan.seed)
            for decoding in (SAMPLED, GREEDY)
            for b, a in combinations([name for name in names if name in answers[decoding]], 2)
        ],
    }


def _answer_rows(answers: Answers) -> list[dict[str, Any]]:
    return [
        {
            "text": text,
            "tokens": len(response.ids),
            "finished": response.finished,
            **verdict.as_dict(),
        }
        for text, response, verdict in zip(
            answers.texts, answers.responses, answers.verdicts, strict=True
        )
    ]


def _table_row(name: str, answers: Answers, categories: list[str], seed: int) -> dict[str, Any]:
    gold = answers.gold
    ids = [response.ids for response in answers.responses]
    if name.startswith("best_of_"):
        kl: float | None = best_of_n_kl(int(name.rpartition("_")[2]))
    else:
        kl = None if answers.kl is None else sum(answers.kl) / len(answers.kl)
    by_category = {
        category: _mean(
            [score for score, mine in zip(gold, categories, strict=True) if mine == category]
        )
        for category in sorted(set(categories))
        if category
    }
    return {
        "gold": _mean(gold),
        "gold_ci95": _pair(bootstrap_mean(gold, seed=seed)),
        "mean_tokens": _mean(answers.lengths),
        "missing_eos": _mean([not response.finished for response in answers.responses]),
        "distinct_1": distinct_n(ids, 1),
        "distinct_2": distinct_n(ids, 2),
        "kl": kl,
        "by_category": by_category,
    }


def _difference(
    a: str, b: str, decoding: str, answers: dict[str, Answers], seed: int
) -> dict[str, Any]:
    mine, other = answers[a], answers[b]
    difference = paired_bootstrap(mine.gold, other.gold, seed=seed)
    outcome = win_tie_loss(mine.gold, other.gold)
    controlled = length_controlled_win_rate(
        mine.gold, other.gold, mine.lengths, other.lengths, seed=seed
    )
    return {
        "a": a,
        "b": b,
        "decoding": decoding,
        "gold": difference.value,
        "ci95": _pair(difference),
        "wins": outcome.wins,
        "ties": outcome.ties,
        "losses": outcome.losses,
        "win_rate": outcome.win_rate,
        "win_rate_ci95": [outcome.ci95.low, outcome.ci95.high],
        "p_sign": outcome.p_sign,
        "length_controlled": {"value": controlled.value, "ci95": _pair(controlled)},
    }


def _pair(estimate: Estimate) -> list[float]:
    return [estimate.ci95.low, estimate.ci95.high]


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))
