"""Rewards from anywhere: models with any tokenizer, Python functions, ensembles of them."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from ppo.config import PPOStage, RewardSettings
from workbench.chat import Prompt, decode
from workbench.errors import UserError
from workbench.functions import load_function, names_function
from workbench.generation import Response
from workbench.models import ModelSettings
from workbench.scorer import RewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Query(NamedTuple):
    """A prompt to practise on.

    Attributes:
        ids: its tokens, as the policy reads them.
        prompt: as the data has it, a string or messages.
        columns: the other columns of its row, for reward functions.
    """

    ids: list[int]
    prompt: Prompt
    columns: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Samples(NamedTuple):
    """B prompts, and the response sampled to each."""

    queries: list[Query]
    responses: list[Response]


class Source(Protocol):
    """Scores answers; higher is better."""

    name: str

    def __call__(self, samples: Samples, texts: Sequence[str]) -> list[float]:
        """Return a score per answer, [B]."""


class RewardFunction:
    """A function `f(prompts, completions, **columns) -> list[float]`, as TRL's trainers take.

    Conversations come as lists of messages, and their completions as one assistant message each.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # some built-in callables have no signature
            self.takes: set[str] | None = None
        else:
            every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
            self.takes = None if every else {parameter.name for parameter in parameters}

    def __call__(self, samples: Samples, texts: Sequence[str]) -> list[float]:
        """Return the function's scores, checked.

        Raises:
            UserError: when it raises, or returns something else than a finite number per answer;
                names the function and the row.
        """
        rows = range(len(texts))
        try:
            scores = self._call(samples, texts, rows)
        except Exception as error:  # noqa: BLE001 - a user's function may fail in any way
            row = next((i for i in rows if self._fails(samples, texts, i)), None)
            where = "on the whole batch" if row is None else f"on {_row(samples, row)}"
            raise UserError(
                f"reward function {self.name}: raised {type(error).__name__} {where}: {error}"
            ) from None
        if isinstance(scores, str) or not hasattr(scores, "__len__"):
            raise UserError(
                f"reward function {self.name}: returned {type(scores).__name__}, not a list of "
                "numbers"
            )
        if len(scores) != len(texts):
            raise UserError(
                f"reward function {self.name}: returned {len(scores)} scores for {len(texts)} "
                "completions; return one for each"
            )
        return [self._number(samples, row, score) for row, score in enumerate(scores)]

    def _call(self, samples: Samples, texts: Sequence[str], rows: Sequence[int]) -> Any:
        queries = [samples.queries[i] for i in rows]
        given: dict[str, Any] = {
            name: [q.columns[name] for q in queries] for name in _shared(queries)
        }
        given |= {
            "prompts": [query.prompt for query in queries],
            "completions": [
                texts[i]
                if isinstance(samples.queries[i].prompt, str)
                else [{"role": "assistant", "content": texts[i]}]
                for i in rows
            ],
            "completion_ids": [samples.responses[i].ids for i in rows],
        }
        taken = given.keys() if self.takes is None else given.keys() & self.takes
        return self.function(**{name: given[name] for name in taken})

    def _fails(self, samples: Samples, texts: Sequence[str], row: int) -> bool:
        try:
            self._call(samples, texts, [row])
        except Exception:  # noqa: BLE001 - only whether
            return True
        return False

    def _number(self, samples: Samples, row: int, score: Any) -> float:
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"reward function {self.name}: returned {score!r} for {_row(samples, row)}; "
                "a score is a finite number"
            )
        return number


class ForeignRewardModel:
    """A reward model with any tokenizer and chat template: answers are decoded and encoded anew."""

    def __init__(self, model: RewardModel, name: str) -> None:
        self.model, self.name = model, name

    @classmethod
    def load(cls, name: str, config: PPOStage, device: torch.device) -> "ForeignRewardModel":
        """Load a folder or hub id, in the precision of the policy."""
        options = ModelSettings(
            name=name,
            precision=config.model.precision,
            trust_remote_code=config.model.trust_remote_code,
            allow_pickle=config.model.allow_pickle,
        )
        model = RewardModel.load(options, config.ppo.micro_batch_size)
        model.model.to(device)
        return cls(model, name)

    def __call__(self, samples: Samples, texts: Sequence[str]) -> list[float]:
        """Return its normalised scores."""
        finished = [response.finished for response in samples.responses]
        prompts = [query.prompt for query in samples.queries]
        scores = self.model.score(prompts, texts, finished)
        for row, score in enumerate(scores):
            if not math.isfinite(score):
                raise UserError(
                    f"reward model {self.name}: its score is {score} for {_row(samples, row)}; "
                    "the model is damaged, or its precision too low"
                )
        return scores


class RewardSources:
    """All sources of a run, and how their scores become one.

    Attributes:
        names: the names of the sources; the role's reward model, where there is one, is first.
    """

    def __init__(
        self, settings: RewardSettings, own: str | None, sources: Sequence[Source]
    ) -> None:
        """Put sources together.

        Args:
            settings: weights and combination.
            own: name of the reward model among the roles, whose scores are handed in; or None.
            sources: the models of `settings.models`, then its functions.
        """
        self.settings, self.own, self.sources = settings, own, list(sources)
        self.names = short_names([*([own] if own else []), *(source.name for source in sources)])
        self.models = len(self.names) - len(settings.functions)

    @classmethod
    def load(cls, config: PPOStage, device: torch.device, own: str | None) -> "RewardSources":
        """Load what `config.rewards` names.

        Args:
            config: the stage's.
            device: where reward models go.
            own: name of the reward model among the roles; None when it is to be loaded here.
        """
        settings, foreign = config.rewards, list(config.rewards.models)
        if own is None and config.reward_model:
            foreign.insert(0, config.reward_model)
        sources: list[Source] = []
        for name in foreign:
            sources.append(ForeignRewardModel.load(name, config, device))
        sources += [
            RewardFunction(load_function(name, "rewards.functions"), name)
            for name in settings.functions
        ]
        return cls(settings, own, sources)

    def __call__(
        self, samples: Samples, tokenizer: "PreTrainedTokenizerBase", own: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Score answers by every source.

        Args:
            samples: the answers.
            tokenizer: the policy's.
            own: scores of the reward model among the roles, [B].

        Returns:
            The combined scores, [B] float32 on the CPU, and each source's by name.
        """
        columns = [] if own is None else [own.float().cpu()]
        if self.sources:
            texts = [decode(tokenizer, response.ids) for response in samples.responses]
            columns += [torch.tensor(source(samples, texts)) for source in self.sources]
        stacked = torch.stack(columns)
        return self.combine(stacked), dict(zip(self.names, stacked, strict=True))

    def combine(self, scores: torch.Tensor) -> torch.Tensor:
        """Make one score of those of all sources.

        Reward models are combined as `rewards.combine` says; functions are added to that.

        Args:
            scores: [S, B], in the order of `names`.

        Returns:
            [B].
        """
        settings = self.settings
        weights = torch.tensor(settings.weights or [1.0] * len(scores))[:, None]
        weighted = weights * scores
        models, functions = weighted[: self.models], weighted[self.models :]
        total = functions.sum(0)
        if not len(models):
            return total
        if settings.combine == "sum":
            return total + models.sum(0)
        if settings.combine == "mean":
            return total + models.sum(0) / weights[: self.models].sum()
        if settings.combine == "min":
            return total + models.min(0).values
        spread = models.var(0, correction=0)
        return total + models.mean(0) - settings.variance_coef * spread


def load_held_out(config: PPOStage, device: torch.device) -> dict[str, Source]:
    """Load what `config.monitors.rewards` names, by short names."""
    names = config.monitors.rewards
    short = short_names(["gold", *names])[1:]  # the judge's name is taken
    sources: list[Source] = [
        RewardFunction(load_function(name, "monitors.rewards"), name)
        if names_function(name)
        else ForeignRewardModel.load(name, config, device)
        for name in names
    ]
    return dict(zip(short, sources, strict=True))


def _shared(queries: Sequence[Query]) -> list[str]:
    # Rows of a JSON lines file need not all have the same columns.
    names = dict.fromkeys(name for query in queries for name in query.columns)
    return [name for name in names if all(name in query.columns for query in queries)]


def _row(samples: Samples, row: int) -> str:
    prompt = samples.queries[row].prompt
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    short = text if len(text) <= 60 else f"{text[:57]}…"
    return f"row {row} of the batch (prompt {short!r})"


def short_names(names: Sequence[str]) -> list[str]:
    """Return short names, the last part of each path, made distinct by numbers where they clash."""
    found: list[str] = []
    for name in names:
        parts = [part for part in name.replace("\\", "/").split("/") if part not in {"", "model"}]
        short = parts[-1] if parts else name
        if parts and short == "reward" and len(parts) > 1:
            short = f"{parts[-2]}/reward"
        count, base = 2, short
        while short in found:
            short, count = f"{base}-{count}", count + 1
        found.append(short)
    return found
