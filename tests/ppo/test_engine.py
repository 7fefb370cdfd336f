"""The loop: a plain-loop reference, accumulation, schedules, resume bit for bit, learning."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ppo import checkpoint
from ppo.engine import PPOEngine
from ppo.rollout import score_rollout
from tests.ppo.conftest import MEAN, STD, even_share
from workbench.errors import UserError
from workbench.generation import Response
from workbench.models import ModelSettings, load_policy, load_scorer
from workbench.run import read_metrics

LAYOUTS = {
    "separate": [],
    "shared_trunk": ["model.layout=shared_trunk", "model.train_top_layers=1"],
    "lora": ["model.layout=lora", "model.lora.r=4"],
}
METRICS = (
    "objective/kl objective/kl_coef objective/entropy objective/scores objective/rlhf_reward "
    "objective/non_score_reward policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg "
    "policy/grad_norm policy/minibatches loss/policy_avg loss/value_avg loss/total_avg "
    "val/clipfrac_avg val/ratio "
    "val/ratio_first_minibatch val/explained_variance val/grad_norm val/num_eos_tokens "
    "response/length response/missing_eos response/distinct_2 time/rollout time/score time/update "
    "episode lr"
)
EVAL_METRICS = (
    "eval/scores eval/kl eval/length eval/missing_eos eval/distinct_2 episode "
    "monitor/length_ratio monitor/distinct_2_ratio monitor/drift"
)


def weights(trainer: PPOEngine) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.roles.trained.named_parameters()}


def policy_part(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in found.items() if not name.startswith("value")}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@torch.no_grad()
def perturb(trainer: PPOEngine) -> None:
    """Move the policy a little, as updates would."""
    draw = torch.Generator().manual_seed(4)
    for name, parameter in trainer.roles.trained.named_parameters():
        if parameter.requires_grad and not name.startswith("value"):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    trainer.roles.sync_actor()


def rollout_of(trainer: PPOEngine):
    ids = [query.ids for query in trainer.next_queries()]
    responses = trainer.backend.sample(ids, trainer.config.rollout, trainer._seed(1))
    return score_rollout(trainer.roles, ids, responses, 1.0, 3)


def timeless(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def log_of(trainer: PPOEngine) -> list[dict]:
    return timeless(read_metrics(trainer.run.path / "metrics.jsonl"))


# --- the first update


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_first_minibatch_has_ratio_one_and_kl_zero(family, trainer, layout, temperature):
    """Also with GPT-2's dropout in the config, and with a temperature."""
    metrics = trainer(
        family, *LAYOUTS[layout], f"rollout.temperature={temperature}", "ppo.micro_batch_size=2"
    ).step()
    assert abs(metrics["objective/kl"]) < 1e-6
    assert abs(metrics["val/ratio_first_minibatch"] - 1) < 1e-6
    assert abs(metrics["val/ratio"] - 1) > 1e-4  # later minibatches do move
    assert metrics["policy/grad_norm"] > 0
    assert metrics["val/grad_norm"] > 0


def plain_ppo(family, moved, queries, answers: list[Response], args):
    """The same update without the project's arithmetic: single sequences, whole models."""
    policy, reference = (
        load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval() for _ in range(2)
    )
    policy.load_state_dict(moved)
    reward, critic = (
        load_scorer(ModelSettings(name=str(family.reward)), torch.float32).eval() for _ in range(2)
    )
    weight = (reward.score.weight[0].detach() / STD).clone().requires_grad_()
    bias = torch.tensor(-MEAN / STD, requires_grad=True)

    def look(model, value_model, query, answer):
        ids = torch.tensor([query + answer.ids])
        before = slice(len(query) - 1, -1)
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, before], -1)
        states = value_model.base_model(input_ids=ids).last_hidden_state[0]
        chosen = logprobs[torch.arange(len(answer.ids)), torch.tensor(answer.ids)]
        return chosen, states[before] @ weight + bias, states[-1]

    old, advantages, returns = [], [], []
    with torch.no_grad():
        for query, answer in zip(queries, answers, strict=True):
            logprobs, values, _ = look(policy, critic, query, answer)
            start, _, last = look(reference, reward, query, answer)
            score = float((last @ reward.score.weight[0] - MEAN) / STD)
            if not answer.finished:
                score -= args.missing_eos_penalty
            rewards = [-args.kl_coef * float(a - b) for a, b in zip(logprobs, start, strict=True)]
            rewards[-1] += score
            following = [*values[1:].tolist(), 0.0]
            delta = [
                r + args.gamma * v1 - float(v0)
                for r, v1, v0 in zip(rewards, following, values, strict=True)
            ]
            row = [
                sum((args.gamma * args.lam) ** (k - t) * delta[k] for k in range(t, len(delta)))
                for t in range(len(delta))
            ]
            old.append((logprobs, values))
            advantages.append(torch.tensor(row))
            returns.append(torch.tensor(row) + values)
    everything = torch.cat(advantages)
    mean, std = everything.mean(), everything.var(correction=0).sqrt()

    groups = [[*policy.parameters()], [*critic.base_model.parameters(), weight, bias]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "lr": args.learning_rate},
         {"params": groups[1], "lr": args.value_learning_rate}],
        betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
    )  # fmt: skip
    for _ in range(args.num_ppo_epochs):
        losses = []
        for i, (query, answer) in enumerate(zip(queries, answers, strict=True)):
            logprobs, values, _ = look(policy, critic, query, answer)
            ratio = (logprobs - old[i][0]).exp()
            advantage = (advantages[i] - mean) / std
            near = ratio.clamp(1 - args.cliprange, 1 + args.cliprange)
            losses.append(-torch.minimum(advantage * ratio, advantage * near))
            low, high = old[i][1] - args.cliprange_value, old[i][1] + args.cliprange_value
            clipped = torch.minimum(torch.maximum(values, low), high)
            errors = torch.stack([values - returns[i], clipped - returns[i]]).square()
            losses.append(args.vf_coef * errors.amax(0) / 2)
        optimizer.zero_grad()
        (torch.cat(losses).sum() / len(everything)).backward()
        for group in groups:
            gradients = [p.grad for p in group if p.grad is not None]
            norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
            for gradient in gradients:
                gradient.mul_(min(1.0, args.max_grad_norm / norm))
        optimizer.step()
    return policy, critic, weight, bias


def test_two_passes_equal_a_plain_loop(family, trainer):
    """From sampled answers to new weights, against a reference that shares no code with it."""
    made = trainer(
        family,
        "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=2", "ppo.max_grad_norm=0.5",
        "ppo.weight_decay=0.01", "ppo.cliprange=0.05", "ppo.cliprange_value=0.02",
        "ppo.learning_rate=1e-3", "ppo.value_learning_rate=2e-3", "ppo.gamma=0.9",
        "ppo.vf_coef=0.5", "ppo.kl_coef=0.3",
        # The loop has the usual kernels, which round otherwise: a gradient of nothing but rounding
        # must not take a visible step.
        "ppo.adam_epsilon=1e-4",
    )  # fmt: skip
    perturb(made)  # a policy away from its reference, so that the KL penalty is not 0
    moved = {name: weight.clone() for name, weight in made.roles.actor.state_dict().items()}
    rollout = rollout_of(made)
    assert 0 < int(rollout.finished.sum()) < 8
    metrics = made.optimisation(made.experience(rollout), 1.0, made._seed(3))
    assert metrics["policy/clipfrac_avg"] > 0.05
    assert metrics["val/clipfrac_avg"] > 0.05
    assert metrics["policy/grad_norm"] > 0.5
    assert abs(metrics["val/ratio_first_minibatch"] - 1) < 1e-6
    policy, critic, weight, bias = plain_ppo(
        family, moved, rollout.queries, rollout.responses, made.args
    )

    trained = made.roles.trained
    made.roles.sync_actor()
    found = made.roles.actor.state_dict()
    assert distance(found, policy.state_dict()) < 1e-5
    assert distance(trained.value.state_dict(), critic.base_model.state_dict()) < 1e-5
    assert (trained.value_head.weight[0] - weight).abs().max() < 1e-5
    assert abs(float(trained.value_head.bias.detach()) - float(bias.detach())) < 1e-5
    assert distance(found, moved) > 1e-4


# --- batches


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_change_memory_not_results(family, trainer, layout):
    results = []
    for size in (1, 3, 8):
        made = trainer(
            family, *LAYOUTS[layout], f"ppo.micro_batch_size={size}",
            "ppo.num_ppo_epochs=1", "ppo.num_mini_batches=1",
            "ppo.learning_rate=2e-4", "ppo.value_learning_rate=2e-4",
        )  # fmt: skip
        start = weights(made)
        metrics = made.step()
        results.append((weights(made), {k: v for k, v in metrics.items() if "time/" not in k}))
    for found, metrics in results[:2]:
        assert distance(found, results[2][0]) < 1e-6
        # Adam forgets the scale of a gradient; its norm does not.
        assert metrics == pytest.approx(results[2][1], rel=1e-4, abs=1e-5)
    assert distance(start, results[0][0]) > 1e-4


def test_every_answer_is_learned_from_once_a_pass_in_a_new_order(llama, trainer, monkeypatch):
    made = trainer(llama, "ppo.num_ppo_epochs=3", "ppo.num_mini_batches=4")
    real, seen = made.optimisation.step, []

    def spy(experience, rows, temperature):
        seen.append(rows)
        return real(experience, rows, temperature)

    monkeypatch.setattr(made.optimisation, "step", spy)
    made.step()
    assert [len(rows) for rows in seen] == [2] * 12
    passes = [[row for rows in seen[i : i + 4] for row in rows] for i in (0, 4, 8)]
    assert all(sorted(one) == list(range(8)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def queries_of_updates(made: PPOEngine, count: int) -> list[tuple[int, ...]]:
    found = []
    for update in range(count):
        made.global_step = update
        found += [tuple(query.ids) for query in made.next_queries()]
    return found


def test_every_prompt_comes_once_before_any_comes_twice(llama, trainer):
    made = trainer(llama)
    all_prompts = sorted(tuple(query.ids) for query in made.train_queries)
    n = len(all_prompts)
    assert n == 17  # not a multiple of the batch of 8
    found = queries_of_updates(made, n)
    rounds = [found[i : i + n] for i in range(0, len(found), n)]
    assert len(rounds) == 8
    assert all(sorted(one) == all_prompts for one in rounds)
    assert len({tuple(one) for one in rounds}) == 8
    assert queries_of_updates(trainer(llama), n) == found
    assert queries_of_updates(trainer(llama, "run.seed=1"), n) != found


def test_processes_share_a_batch_out(llama, trainer):
    made = trainer(llama)
    whole = queries_of_updates(made, 3)
    made.local_batch_size = 4
    parts = []
    for rank in (0, 1):
        made.accelerator = SimpleNamespace(process_index=rank)
        parts.append(queries_of_updates(made, 3))
    assert [parts[0][4 * u : 4 * u + 4] + parts[1][4 * u : 4 * u + 4] for u in range(3)] == [
        whole[8 * u : 8 * u + 8] for u in range(3)
    ]


def test_seeds_differ_by_purpose_update_process_and_run(llama, trainer):
    made = trainer(llama)
    seeds = []
    for purpose in (1, 2, 3):
        for made.global_step in range(20):
            for rank in range(4):
                made.accelerator = SimpleNamespace(process_index=rank)
                for made.config.run.seed in range(5):
                    seeds.append(made._seed(purpose))
    assert len(set(seeds)) == len(seeds)


def test_a_batch_that_processes_cannot_share_is_refused(llama, trainer, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    with pytest.raises(UserError) as error:
        trainer(llama)
    text = str(error.value)
    assert "ppo.batch_size=8" in text
    assert "3 × 2" in text
    assert "\n" not in text


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen"])
def test_a_shared_trunk_with_all_layers_trained_follows_separate(request, trainer, kind):
    """What is left to share is the embedding, so `separate` must leave embedding and head alone."""
    family = request.getfixturevalue(kind)
    rates = ["ppo.learning_rate=1e-3", "ppo.value_learning_rate=1e-3"]
    apart = trainer(family, "run.name=apart", *rates)
    ends = [apart.roles.trained.lm_head]
    for part in (apart.roles.trained.policy, apart.roles.trained.value):
        ends += [part.wte, part.wpe] if kind == "gpt2" else [part.embed_tokens]
    for end in ends:
        end.requires_grad_(False)
    shared = trainer(
        family, "run.name=shared", "model.layout=shared_trunk",
        f"model.train_top_layers={family.layers}", *rates,
    )  # fmt: skip
    for _ in range(3):
        a, b = apart.step(), shared.step()
        for name in ("loss/policy_avg", "loss/value_avg", "objective/kl", "policy/grad_norm"):
            assert a[name] == pytest.approx(b[name], abs=1e-5, rel=1e-4), name
    found = dict(apart.roles.trained.named_parameters())
    learned = {n: p for n, p in shared.roles.trained.named_parameters() if p.requires_grad}
    assert len(learned) > family.layers
    for name, weight in learned.items():
        assert torch.allclose(weight, found[name], atol=1e-5), name
    assert a["objective/kl"] > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_share_cast_weights_in_bf16(llama, trainer, layout):
    """Cast once for all micro-batches, every one of them still leaves its gradient."""
    results = []
    for size in (2, 8):
        made = trainer(
            llama, *LAYOUTS[layout], "model.precision=bf16", f"ppo.micro_batch_size={size}",
            "ppo.num_ppo_epochs=1", "ppo.num_mini_batches=1",
        )  # fmt: skip
        metrics = made.step()
        results.append([metrics["policy/grad_norm"], metrics["val/grad_norm"]])
    assert results[0] == pytest.approx(results[1], rel=0.05)


# --- what moves and what does not


@pytest.mark.parametrize("layout", LAYOUTS)
def test_learning_rate_zero_leaves_every_bit(family, trainer, layout):
    made = trainer(family, *LAYOUTS[layout], "ppo.weight_decay=0.1")
    for group in made.optimisation.optimizer.param_groups:
        group["lr"] = 0.0
    before, actor = weights(made), {k: v.clone() for k, v in made.roles.actor.state_dict().items()}
    metrics = made.step()
    assert equal(weights(made), before)
    assert equal(made.roles.actor.state_dict(), actor)
    assert abs(metrics["val/ratio"] - 1) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_warm_up_moves_the_value_alone(family, trainer, layout):
    made = trainer(family, *LAYOUTS[layout], "ppo.value_warmup_updates=2", "ppo.weight_decay=0.1")
    before = weights(made)
    for _ in range(2):
        made.step()
    warm = weights(made)
    assert equal(policy_part(warm), policy_part(before))
    moved = [name for name in before if not torch.equal(warm[name], before[name])]
    assert {name for name in moved if name.startswith("value_head")} == {
        "value_head.weight",
        "value_head.bias",
    }
    assert any(name.startswith("value.") for name in moved)
    made.step()
    assert distance(policy_part(weights(made)), policy_part(before)) > 1e-4


def test_evaluations_do_not_disturb_training(llama, trainer):
    found = []
    for name, every in (("a", 0), ("b", 1)):
        made = trainer(llama, f"run.name={name}", f"ppo.eval_every={every}")
        made.train()
        found.append(weights(made))
    assert equal(*found)


# --- metrics


def test_the_log_has_every_metric(llama, trainer):
    made = trainer(llama, "ppo.eval_every=2")
    made.train()
    rows = read_metrics(made.run.path / "metrics.jsonl")
    updates = [row for row in rows if "objective/kl" in row]
    evaluations = [row for row in rows if "eval/scores" in row]
    assert [row["step"] for row in updates] == [1, 2, 3]
    assert [row["episode"] for row in updates] == [8, 16, 24]
    assert [row["step"] for row in evaluations] == [0, 2, 3]
    for row in updates:
        assert set(row) == {"step", *METRICS.split()}
    for row in evaluations:
        assert set(row) == {"step", *EVAL_METRICS.split()}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    tables = sorted(path.name for path in (made.run.path / "samples").glob("step_*"))
    assert tables == ["step_000000.jsonl", "step_000002.jsonl", "step_000003.jsonl"]


def test_metrics_are_what_their_names_say(llama, trainer):
    made = trainer(llama, "ppo.kl_coef=0.3", "ppo.missing_eos_penalty=2.0", "ppo.score_clip=0.5")
    perturb(made)  # now the policy differs from the reference
    rollout = rollout_of(made)
    experience = made.experience(rollout)
    found = experience.metrics
    lengths = [len(response.ids) for response in rollout.responses]
    returns, errors = (
        np.concatenate([row[:n].numpy() for row, n in zip(rows, lengths, strict=True)])
        for rows in (experience.returns, experience.returns - rollout.values)
    )
    unfinished = [not response.finished for response in rollout.responses]
    kl = [
        float((rollout.logprobs[i, :n] - rollout.ref_logprobs[i, :n]).sum())
        for i, n in enumerate(lengths)
    ]
    entropies = [float(x) for i, n in enumerate(lengths) for x in rollout.entropy[i, :n]]
    shaped = [
        min(0.5, max(-0.5, float(score))) - 2.0 * cut
        for score, cut in zip(rollout.scores, unfinished, strict=True)
    ]
    expected = {
        "objective/kl": sum(kl) / 8,
        "objective/kl_coef": 0.3,
        "objective/entropy": sum(entropies) / len(entropies),
        "objective/scores": float(rollout.scores.sum()) / 8,
        "objective/non_score_reward": -0.3 * sum(kl) / 8,
        "objective/rlhf_reward": (sum(shaped) - 0.3 * sum(kl)) / 8,
        "response/length": sum(lengths) / 8,
        "response/missing_eos": sum(unfinished) / 8,
        "val/num_eos_tokens": 8 - sum(unfinished),
        "val/explained_variance": 1 - errors.var() / returns.var(),
    }
    assert abs(expected["val/explained_variance"]) > 0.01
    assert abs(expected["objective/kl"]) > 0.01
    assert 0 < sum(unfinished) < 8
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_whitening_scales_what_it_says(llama, trainer):
    made = trainer(llama, "ppo.whiten_rewards=true")
    rollout = rollout_of(made)
    kept = rollout.response_mask.bool()
    whitened = made.experience(rollout)
    assert abs(float(whitened.advantages[kept].mean())) < 1e-5
    assert float(whitened.advantages[kept].var(correction=0)) == pytest.approx(1, abs=1e-3)
    assert not whitened.advantages[~kept].any()
    made.args.whiten_advantages = made.args.whiten_rewards = False
    plain = made.experience(rollout)
    assert not torch.allclose(plain.returns, whitened.returns, atol=1e-2)
    assert torch.allclose(plain.advantages[kept], (plain.returns - rollout.values)[kept], atol=1e-5)


def test_adaptive_kl_moves_the_coefficient_by_the_formula(llama, trainer):
    made = trainer(
        llama, "ppo.kl_controller=adaptive", "ppo.kl_target=2.0", "ppo.kl_horizon=100",
        "ppo.total_episodes=40",
    )  # fmt: skip
    made.train()
    rows = [row for row in log_of(made) if "objective/kl" in row]
    assert rows[0]["objective/kl_coef"] == 0.05
    for row, after in itertools.pairwise(rows):
        error = min(0.2, max(-0.2, row["objective/kl"] / 2.0 - 1))
        expected = row["objective/kl_coef"] * (1 + error * 8 / 100)
        assert after["objective/kl_coef"] == pytest.approx(expected, rel=1e-9)
    assert rows[1]["objective/kl_coef"] < 0.05  # KL 0 at first: below the target
    assert len({row["objective/kl_coef"] for row in rows}) == 5


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [1.0, 0.75, 0.5, 0.25]),
        (["ppo.lr_scheduler=constant"], [1.0, 1.0, 1.0, 1.0]),
        (["ppo.lr_scheduler=constant", "ppo.warmup_updates=2"], [0.1, 0.55, 1.0, 1.0]),
        (["ppo.warmup_updates=2"], [0.1, 0.55 * 0.75, 0.5, 0.25]),
    ],
)
def test_learning_rate_follows_its_schedule(llama, trainer, overrides, expected):
    made = trainer(llama, "ppo.total_episodes=32", *overrides)
    policy, value = [], []
    for _ in range(4):
        policy.append(made.optimisation.optimizer.param_groups[0]["lr"] / 3e-3)
        value.append(made.optimisation.optimizer.param_groups[1]["lr"] / 3e-3)
        assert made.step()["lr"] == pytest.approx(policy[-1] * 3e-3)
    assert policy == pytest.approx(expected)
    assert value == pytest.approx(expected)


# --- trouble


def finite_checkpoints(made: PPOEngine) -> list[int]:
    """The updates of all checkpoints, after checking that they hold nothing but finite numbers."""
    found = []
    for folder in sorted(made.run.checkpoints.glob("update-*")):
        state = checkpoint.load(folder)
        moments = [v for one in state["optimizer"]["state"].values() for v in one.values()]
        assert all(torch.isfinite(x).all() for x in [*state["weights"].values(), *moments])
        found.append(state["update"])
    return found


def test_nan_stops_the_run_names_the_update_and_is_never_saved(llama, trainer, monkeypatch):
    made = trainer(llama, "ppo.save_every=1", "ppo.total_episodes=40")
    real = made.roles.scores

    def broken(batch):
        return real(batch) + (math.nan if made.global_step == 2 else 0.0)

    monkeypatch.setattr(made.roles, "scores", broken)
    with pytest.raises(UserError) as error:
        made.train()
    assert "at update 3" in str(error.value)
    assert str(made.run.path) in str(error.value)
    assert "\n" not in str(error.value)
    assert finite_checkpoints(made) == [1, 2]
    assert all(torch.isfinite(weight).all() for weight in weights(made).values())
    assert [row["step"] for row in log_of(made)] == [0, 1, 2]


@pytest.mark.parametrize("rate", ["learning_rate", "value_learning_rate"])
def test_a_diverging_run_ends_in_one_line(llama, trainer, rate):
    made = trainer(llama, "ppo.save_every=1", "ppo.total_episodes=40", f"ppo.{rate}=1e30")
    with pytest.raises(UserError, match=r"NaN or infinite at update [12]; lower ppo.learning_rate"):
        made.train()
    finite_checkpoints(made)


# --- resume

RUNS = {
    "llama separate": ["ppo.kl_controller=adaptive", "ppo.kl_target=1.0", "ppo.kl_horizon=50"],
    "gpt2 shared_trunk": [*LAYOUTS["shared_trunk"], "ppo.warmup_updates=3"],
    "qwen lora": [*LAYOUTS["lora"], "ppo.value_warmup_updates=1", "ppo.eval_every=2"],
}


def stop_after(made: PPOEngine, updates: int, monkeypatch) -> None:
    real = made.step

    def step():
        if made.global_step == updates:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(made, "step", step)
    with pytest.raises(KeyboardInterrupt):
        made.train()


def same_end(a: PPOEngine, b: PPOEngine) -> None:
    assert a.global_step == b.global_step == a.total_updates
    assert equal(weights(a), weights(b))
    assert equal(a.roles.actor.state_dict(), b.roles.actor.state_dict())
    one, two = (t.optimisation.optimizer.state_dict()["state"] for t in (a, b))
    assert all(torch.equal(one[i][key], two[i][key]) for i in one for key in one[i])
    assert log_of(a) == log_of(b)


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize(("every", "stopped"), [(1, 1), (2, 3), (3, 2)])
def test_a_resumed_run_equals_the_uninterrupted_one(
    request, trainer, monkeypatch, kind, every, stopped
):
    family = request.getfixturevalue(kind.split()[0])
    given = ["ppo.total_episodes=40", *RUNS[kind]]
    whole = trainer(family, "run.name=whole", *given)
    whole.train()

    given = ["run.name=stopped", f"ppo.save_every={every}", *given]
    stop_after(trainer(family, *given), stopped, monkeypatch)
    with (whole.run.path.parent.parent / "stopped" / "ppo" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "objective/k')  # a line torn by the crash
    resumed = trainer(family, *given)
    start = resumed.step
    begun: list[int] = []
    monkeypatch.setattr(resumed, "step", lambda: (begun.append(resumed.global_step), start())[1])
    resumed.train()
    assert begun == list(range(every * (stopped // every), 5))
    same_end(whole, resumed)


def test_after_a_damaged_checkpoint_the_one_before_leads_to_the_same_end(
    llama, trainer, monkeypatch, capsys
):
    whole = trainer(llama, "run.name=whole", "ppo.total_episodes=40")
    whole.train()
    given = ["run.name=stopped", "ppo.save_every=1", "ppo.total_episodes=40"]
    first = trainer(llama, *given)
    stop_after(first, 3, monkeypatch)
    newest = first.run.checkpoints / "update-000003" / checkpoint.STATE
    newest.write_bytes(newest.read_bytes()[:-7])
    capsys.readouterr()
    resumed = trainer(llama, *given)
    resumed.train()
    printed = capsys.readouterr().err
    assert f"{newest.parent}: not used" in printed
    assert "continuing from" in printed
    assert "update-000002" in printed.partition("continuing from")[2]
    same_end(whole, resumed)


def test_without_a_whole_checkpoint_the_log_starts_anew(llama, trainer, monkeypatch):
    whole = trainer(llama, "run.name=whole")
    whole.train()
    stop_after(trainer(llama, "run.name=stopped"), 2, monkeypatch)
    resumed = trainer(llama, "run.name=stopped")
    resumed.train()
    same_end(whole, resumed)


# --- learning


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_learns_what_is_rewarded(llama, trainer, monkeypatch, layout):
    """The score is the share of even tokens among an answer's tokens; chance gives about a half."""
    rate = "4e-3" if layout == "lora" else "3e-3"
    made = trainer(
        llama, *LAYOUTS[layout], "ppo.total_episodes=256", "ppo.batch_size=32",
        "ppo.num_ppo_epochs=4", "ppo.micro_batch_size=32", f"ppo.learning_rate={rate}",
        "ppo.lr_scheduler=constant", "ppo.kl_coef=0.0", "ppo.missing_eos_penalty=null",
    )  # fmt: skip

    monkeypatch.setattr(made.roles, "scores", even_share)
    scores = [made.step()["objective/scores"] for _ in range(8)]
    assert 0.3 < scores[0] < 0.75
    assert sum(scores[-2:]) / 2 > scores[0] + 0.12
    # The actor that is saved has learned it, not only the module that was trained.
    again = rollout_of(made)
    assert float(again.scores.mean()) > scores[0] + 0.12
