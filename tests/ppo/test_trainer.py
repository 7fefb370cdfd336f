import json
import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    GraniteConfig,
    TrainerCallback,
    get_linear_schedule_with_warmup,
)

from ppo import PPOConfig, PPOTrainer
from tests.docs import blocks, read, section
from tests.ppo.conftest import MEAN, PROMPTS, STD
from workbench.chat import query_ids
from workbench.errors import UserError
from workbench.models import load_tokenizer
from workbench.scorer import RewardModel

ARGUMENTS = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_mini_batches": 2,
    "total_episodes": 24, "num_ppo_epochs": 2, "response_length": 7, "learning_rate": 3e-3,
    "stop_token": "eos", "bf16": False, "num_sample_generations": 0, "save_strategy": "no",
    "disable_tqdm": True, "report_to": "none",
}  # fmt: skip


def policy(family):
    return AutoModelForCausalLM.from_pretrained(family.policy, dtype=torch.float32)


def scorer(family):
    return AutoModelForSequenceClassification.from_pretrained(
        family.reward, num_labels=1, dtype=torch.float32
    )


def make(family, *, arguments=None, **given):
    args = PPOConfig("out", **{**ARGUMENTS, **(arguments or {})})
    chosen = {
        "args": args,
        "processing_class": load_tokenizer(str(family.policy)),
        "model": policy(family),
        "ref_model": None,
        "reward_model": scorer(family),
        "train_dataset": [{"prompt": text} for text in PROMPTS[:-4]],
        "value_model": scorer(family),
    }
    return PPOTrainer(**{**chosen, **given})


@pytest.fixture(autouse=True)
def _folder(runs):
    """Every test writes in a folder of its own."""


def weights(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def test_a_script_for_trl_runs(llama):
    """As TRL's examples do it: a tokenised data set, four models, a collator, train and save."""
    args = PPOConfig(
        output_dir="script", per_device_train_batch_size=4, gradient_accumulation_steps=2,
        total_episodes=16, num_ppo_epochs=1, response_length=6, learning_rate=1e-3,
        stop_token="eos", missing_eos_penalty=1.0, kl_estimator="k3", whiten_rewards=True,
        num_sample_generations=2, eval_strategy="steps", eval_steps=1, report_to="none",
        gradient_checkpointing=True, logging_steps=1, local_rollout_forward_batch_size=3,
        dataset_num_proc=1, warmup_steps=1, lr_scheduler_type="cosine",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(llama.policy, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(llama.policy)
    reference = AutoModelForCausalLM.from_pretrained(llama.policy)
    reward = AutoModelForSequenceClassification.from_pretrained(llama.reward, num_labels=1)
    value = AutoModelForSequenceClassification.from_pretrained(llama.reward, num_labels=1)
    rows = Dataset.from_dict({"prompt": PROMPTS}).map(
        lambda row: {"input_ids": tokenizer(row["prompt"], padding=False)["input_ids"]},
        remove_columns=["prompt"],
    )
    before = weights(model), weights(reference), weights(reward)
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=model,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows.select(range(17)),
        eval_dataset=rows.select(range(17, 21)),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    trainer.generate_completions()

    assert (args.batch_size, args.mini_batch_size, args.num_total_batches) == (8, 8, 2)
    logged = [row for row in trainer.state.log_history if "objective/kl" in row]
    names = (
        "eps objective/kl objective/entropy objective/non_score_reward objective/rlhf_reward "
        "objective/scores policy/approxkl_avg policy/clipfrac_avg loss/policy_avg loss/value_avg "
        "val/clipfrac_avg policy/entropy_avg val/ratio val/num_eos_tokens lr episode epoch"
    )
    assert all(set(names.split()) <= set(row) for row in logged)
    assert [(row["step"], row["episode"]) for row in logged] == [(1, 8), (2, 16)]
    trained = weights(model)
    assert any(not torch.equal(trained[name], before[0][name]) for name in trained)
    assert all(torch.equal(weight, before[1][name]) for name, weight in weights(reference).items())
    assert all(torch.equal(weight, before[2][name]) for name, weight in weights(reward).items())
    saved = AutoModelForCausalLM.from_pretrained("script", dtype=torch.float32)
    assert all(torch.equal(weight, trained[name]) for name, weight in weights(saved).items())
    assert AutoTokenizer.from_pretrained("script").get_vocab() == tokenizer.get_vocab()
    tables = sorted(path.name for path in trainer.run.path.glob("samples/*"))
    assert tables == ["step_000001.jsonl", "step_000002.jsonl"]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_numbers_are_those_of_the_engine_run_from_folders(name, request, trainer):
    family = request.getfixturevalue(name)
    folders = trainer(
        family, "ppo.missing_eos_penalty=0.5", "ppo.kl_coef=0.1", "ppo.micro_batch_size=4",
        "ppo.adam_beta2=0.999", "ppo.adam_epsilon=1e-8", "rollout.temperature=0.7", "run.seed=42",
    )  # fmt: skip
    facade = make(family, arguments={"missing_eos_penalty": 0.5, "kl_coef": 0.1})
    start = weights(folders.roles.trained)
    for _ in range(2):
        expected, found = folders.step(), facade.update(facade.score(facade.rollout()))
        same = {key for key in expected if not key.startswith("time/")}
        assert {key: found[key] for key in same} == pytest.approx(
            {key: expected[key] for key in same}, abs=1e-6
        )
    assert facade.engine.total_updates == folders.total_updates == 3
    theirs = weights(folders.roles.trained)
    assert max((weight - start[key]).abs().max() for key, weight in theirs.items()) > 1e-3
    for key, weight in weights(facade.roles.trained).items():
        torch.testing.assert_close(weight, theirs[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_accumulation_changes_memory_not_results(llama, lora):
    found = []
    for batch, steps in ((1, 8), (8, 1)):
        arguments = {
            "per_device_train_batch_size": batch, "gradient_accumulation_steps": steps,
            "num_mini_batches": 1, "num_ppo_epochs": 1, "learning_rate": 2e-4,
            "adam_epsilon": 1e-5,  # with 1e-8 a gradient of nothing but rounding takes a full step
        }  # fmt: skip
        config = LoraConfig(r=4, init_lora_weights=True) if lora else None
        made = make(llama, arguments=arguments, peft_config=config)
        start = weights(made.roles.trained)
        made.update(made.score(made.rollout()))
        found.append(weights(made.roles.trained))
    moved = max(float((found[0][name] - start[name]).abs().max()) for name in start)
    apart = max(float((found[0][name] - found[1][name]).abs().max()) for name in start)
    assert moved > 1e-4
    assert apart < 1e-6


def test_tokens_text_and_conversations_are_the_same_data(llama):
    tokenizer = load_tokenizer(str(llama.policy))
    texts = PROMPTS[:-4]
    data = [
        [{"prompt": text} for text in texts],
        Dataset.from_list([{"input_ids": query_ids(tokenizer, text)} for text in texts]),
        [{"messages": [{"role": "user", "content": text}]} for text in texts],
    ]
    ends = []
    for rows in data:
        trainer = make(llama, train_dataset=rows, arguments={"total_episodes": 8})
        trainer.train()
        ends.append(weights(trainer.policy_model))
    for other in ends[1:]:
        assert all(torch.equal(weight, ends[0][name]) for name, weight in other.items())


class Recorder(TrainerCallback):
    def __init__(self, stop_after=None):
        self.events, self.stop_after = [], stop_after

    def on_train_begin(self, args, state, control, **kwargs):
        assert kwargs["model"].policy is not None
        assert kwargs["optimizer"] is not None
        self.events.append(("begin", state.global_step, state.max_steps))

    def on_log(self, args, state, control, logs=None, **kwargs):
        assert "objective/kl" in logs
        self.events.append(("log", state.global_step, state.episode))

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(("step", state.global_step))
        control.should_training_stop |= state.global_step == self.stop_after

    def on_save(self, args, state, control, **kwargs):
        self.events.append(("save", state.global_step))

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append(("end", state.global_step))


def test_callbacks_are_called_in_order(llama):
    recorder = Recorder()
    arguments = {"save_strategy": "steps", "save_steps": 2}
    make(llama, callbacks=[recorder], arguments=arguments).train()
    assert recorder.events == [
        ("begin", 0, 3),
        ("log", 1, 8), ("step", 1),
        ("log", 2, 16), ("step", 2), ("save", 2),
        ("log", 3, 24), ("step", 3), ("save", 3),
        ("end", 3),
    ]  # fmt: skip


def test_a_callback_can_stop_the_run_and_it_can_be_resumed(llama):
    whole = make(llama)
    whole.train()
    arguments = {"save_strategy": "steps", "save_steps": 1}
    recorder = Recorder(stop_after=2)
    make(llama, callbacks=[recorder], arguments=arguments).train()
    assert recorder.events[-1] == ("end", 2)
    rest = make(llama, arguments=arguments)
    rest.train(resume_from_checkpoint=True)
    assert rest.state.global_step == 3
    for name, weight in weights(rest.roles.trained).items():
        assert torch.equal(weight, weights(whole.roles.trained)[name]), name
    with pytest.raises(UserError, match="hand in True"):
        rest.train(resume_from_checkpoint="out/checkpoint-1")
    # Without being asked, a run starts anew.
    again = make(llama, arguments=arguments)
    again.train()
    rows = [json.loads(line) for line in (again.run.path / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2, 3]


def test_stop_tokens(llama):
    tokenizer = load_tokenizer(str(llama.policy))
    eos = make(llama).rollout()
    ended = [each for each in eos.responses if each.finished]
    assert ended
    assert all(each.ids.index(tokenizer.eos_token_id) == len(each.ids) - 1 for each in ended)
    none = make(llama, arguments={"stop_token": None}).rollout()
    assert {len(each.ids) for each in none.responses} == {7}
    assert [each.finished for each in none.responses] == [
        tokenizer.eos_token_id in each.ids for each in none.responses
    ]
    assert any(tokenizer.eos_token_id in each.ids[:-1] for each in none.responses)
    token = none.responses[0].ids[2]
    other = make(llama, arguments={"stop_token": None, "stop_token_id": token}).rollout()
    assert other.responses[0].ids == none.responses[0].ids[: none.responses[0].ids.index(token) + 1]
    assert other.responses[0].finished


def test_the_missing_eos_penalty_is_taken_from_the_score(llama):
    rewards = {}
    for penalty in (None, 2.0):
        trainer = make(llama, arguments={"missing_eos_penalty": penalty})
        experience = trainer.score(trainer.rollout())
        rewards[penalty] = experience.metrics["objective/rlhf_reward"]
        share = experience.metrics["response/missing_eos"]
    assert 0 < share < 1
    assert rewards[None] - rewards[2.0] == pytest.approx(2.0 * share, abs=1e-5)


def test_a_value_model_is_used_and_trained_where_it_is(llama):
    value = scorer(llama)
    with torch.no_grad():
        value.score.weight.zero_()
    value.config.reward_mean, value.config.reward_std = 0.0, 1.0
    trainer = make(llama, value_model=value, arguments={"total_episodes": 8})
    experience = trainer.score(trainer.rollout())
    assert not experience.rollout.values.any()
    trainer.update(experience)
    assert value.score.weight.any()
    assert trainer.value_model is value


def test_rewards_from_elsewhere(llama, qwen):
    def length(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    trainer = make(llama, reward_model=length, value_model=None)
    samples = trainer.rollout()
    scores = trainer.score(samples).rollout.scores
    assert scores.tolist() == [len(each.ids) for each in samples.responses]

    foreign = RewardModel(scorer(qwen), load_tokenizer(str(qwen.reward)))
    both = make(llama, reward_model=[scorer(llama), foreign, length])
    rollout = both.score(samples).rollout
    assert len(rollout.parts) == 3
    torch.testing.assert_close(rollout.scores.cpu(), sum(rollout.parts.values()))


def test_lora(llama):
    model, config = policy(llama), LoraConfig(r=4, lora_alpha=8, lora_dropout=0.3, bias="none")
    before = weights(model)
    trainer = make(llama, model=model, peft_config=config)
    first = trainer.score(trainer.rollout())
    # A fresh adapter changes nothing, and the reference is the model without it.
    assert torch.equal(first.rollout.logprobs, first.rollout.ref_logprobs)
    assert first.metrics["objective/kl"] == 0
    trainer.update(first)
    second = trainer.score(trainer.rollout())
    assert second.metrics["objective/kl"] != 0
    plain = trainer.roles.adapters.plain_state(model)
    assert all(torch.equal(plain[name], weight) for name, weight in before.items())
    trainer.save_model("adapter")
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(policy(llama), "adapter").eval()
    ids = torch.tensor([query_ids(trainer.processing_class, PROMPTS[0])])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(loaded(ids).logits, policy(llama)(ids).logits, atol=1e-3)


def test_a_reference_beside_an_adapter(llama):
    other = policy(llama)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.1)
    config = LoraConfig(r=4, target_modules="all-linear")
    trainer = make(llama, ref_model=other, peft_config=config)
    rollout = trainer.score(trainer.rollout()).rollout
    assert not torch.allclose(rollout.logprobs, rollout.ref_logprobs, atol=1e-3)


def test_optimizers_of_one_s_own(llama):
    model, value = policy(llama), scorer(llama)
    value.config.reward_mean, value.config.reward_std = 0.0, 1.0
    optimizer = torch.optim.SGD([*model.parameters(), *value.parameters()], lr=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 3)
    before = weights(model)
    trainer = make(llama, model=model, value_model=value, optimizers=(optimizer, schedule))
    trainer.train()
    assert trainer.optimizer is optimizer
    assert trainer.lr_scheduler is schedule
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())
    stray = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"optimizers: .* neither model nor value_model"):
        make(llama, optimizers=(stray, None))


def test_schedules_of_transformers(llama):
    arguments = {"warmup_steps": 2, "lr_scheduler_type": "constant_with_warmup"}
    trainer = make(llama, arguments=arguments)
    rates = [trainer.update(trainer.score(trainer.rollout()))["lr"] for _ in range(3)]
    assert rates == pytest.approx([0.0, 1.5e-3, 3e-3])


def test_sample_generations(llama):
    trainer = make(
        llama,
        eval_dataset=[{"prompt": text} for text in PROMPTS[-4:]],
        arguments={"num_sample_generations": 1, "per_device_eval_batch_size": 3},
    )
    trainer.train()
    (table,) = trainer.run.path.glob("samples/*")
    rows = [json.loads(line) for line in table.open()]
    assert len(rows) == 3
    every = trainer.generate_completions()
    assert len(every) == 4
    assert set(every[0]) == {"query", "model response", "score"}
    assert make(llama).generate_completions() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_dataset": None}, "train_dataset: is None"),
        ({"train_dataset": []}, "train_dataset: has no rows"),
        ({"reward_model": 3}, "reward_model: is int; hand in"),
        ({"reward_model": []}, "reward_model: is an empty list"),
        ({"peft_config": LoraConfig(use_dora=True)}, "peft_config: bias, use_dora"),
        ({"peft_config": "lora"}, "peft_config: is a str"),
        ({"arguments": {"response_length": 10_000}}, "response_length=10000: after the longest"),
        ({"arguments": {"temperature": 0.0}}, "temperature=0"),
        ({"arguments": {"push_to_hub": True}}, "push_to_hub: there is no upload while"),
    ],
)
def test_what_cannot_be_used_is_named(llama, given, message):
    with pytest.raises(UserError, match=message):
        make(llama, **given)


def test_models_that_cannot_take_their_role(llama, qwen):
    model = policy(llama)
    two = AutoModelForSequenceClassification.from_pretrained(llama.policy, num_labels=2)
    small = scorer(llama)
    small.resize_token_embeddings(100)
    granite = AutoModelForCausalLM.from_config(
        GraniteConfig(
            vocab_size=360, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, logits_scaling=2.0, pad_token_id=0,
        )
    )  # fmt: skip
    from peft import get_peft_model

    wrong = [
        ({"model": model, "ref_model": model}, "ref_model: is model itself"),
        ({"reward_model": two}, "reward_model: needs a linear head .* num_labels=1"),
        ({"value_model": two}, "value_model: needs a linear head"),
        ({"reward_model": small}, "reward_model: reads 100 tokens, the policy writes"),
        ({"reward_model": [small, small]}, "only one model can share"),
        ({"model": scorer(llama)}, "model: is a Llama.*; hand in an AutoModelForCausalLM"),
        ({"model": get_peft_model(policy(llama), LoraConfig())}, "model: is a PeftModel"),
        ({"model": granite}, "model: rescales its logits .* granite models"),
    ]
    for given, message in wrong:
        with pytest.raises(UserError, match=message):
            make(llama, **given)


def test_a_field_set_later_is_refused_too(llama):
    args = PPOConfig("out", **ARGUMENTS)
    args.max_steps = 5
    with pytest.raises(UserError, match="max_steps=5"):
        make(llama, args=args)


def test_one_object_may_be_reward_and_value(llama):
    both = scorer(llama)
    before = both.score.weight.detach().clone()
    trainer = make(llama, reward_model=both, value_model=both)
    trainer.update(trainer.score(trainer.rollout()))
    assert torch.equal(both.score.weight, before)
    head = trainer.value_model.score
    assert not torch.equal(head.weight, before / STD)
    assert head.bias.item() == pytest.approx(-MEAN / STD, abs=0.1)


def test_the_step_api_s_example_runs(llama, tmp_path):
    (tmp_path / "sft-model").symlink_to(llama.policy)
    (tmp_path / "reward-model").symlink_to(llama.reward)
    (example,) = blocks(section(read("migrating-from-trl.md"), "## A loop of your own"), "python")
    lines = [line for line in example.splitlines() if line and not re.match(r"from|import", line)]
    assert len(lines) <= 20
    scope = {}
    exec(compile(example, "migrating-from-trl.md", "exec"), scope)
    assert scope["step"] == 2
    assert scope["experience"].advantages.shape[0] == 4
    AutoModelForCausalLM.from_pretrained(tmp_path / "aligned-model")
