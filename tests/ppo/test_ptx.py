"""PPO-ptx: the loss in closed form, its gradient beside PPO's, its order, and what it is for."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from ppo import logprobs, stage
from ppo.config import PPOStage
from ppo.engine import PPOEngine
from ppo.ptx import Ptx, Text, encode, load_ptx
from ppo.ptx_config import PtxSettings
from tests.conftest import SENTENCES
from tests.ppo.conftest import PROMPTS, arguments
from workbench.config import load_config
from workbench.errors import UserError
from workbench.models import ModelSettings, load_policy, load_tokenizer
from workbench.run import read_metrics

LAYOUTS = {
    "separate": [],
    "shared_trunk": ["model.layout=shared_trunk", "model.train_top_layers=1"],
    "lora": ["model.layout=lora", "model.lora.r=4"],
    "lora on a trunk": ["model.layout=lora", "model.lora.r=4", "model.train_top_layers=1"],
}
ROWS = [{"text": text} for text in SENTENCES] + [
    {"prompt": prompt, "completion": SENTENCES[i]} for i, prompt in enumerate(PROMPTS[:5])
]


@pytest.fixture
def texts(tmp_path):
    """Sixteen sentences of one pattern."""
    path = tmp_path / "texts.jsonl"
    things = ("lamp", "gate", "kettle", "ferry", "lift", "coat", "window", "button")
    rows = [
        {"text": f"The {thing} on the {place} hums when the lift goes down."}
        for thing in things
        for place in ("landing", "island")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def with_ptx(trainer, family, *overrides) -> PPOEngine:
    """An engine with the texts that its configuration names."""
    made = trainer(family, *overrides)
    made.ptx = load_ptx(made.config, made.tokenizer, made.roles, made.accelerator)
    if made.ptx is not None and made.ptx.learns:
        made.optimisation.ptx = made.ptx
    return made


def ptx_of(made: PPOEngine, rows=ROWS, **settings) -> Ptx:
    found = encode(rows, made.tokenizer, 512, "rows")
    return Ptx(PtxSettings(data="rows", **settings), found, found, made.roles, seed=0)


def policy_gradients(made: PPOEngine) -> dict[str, torch.Tensor]:
    return {
        name: weight.grad.clone()
        for name, weight in made.roles.trained.named_parameters()
        if weight.grad is not None
    }


def weights(made: PPOEngine) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in made.roles.trained.named_parameters()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def perturb(made: PPOEngine) -> None:
    draw = torch.Generator().manual_seed(4)
    for parameter in made.roles.trained.policy.parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    made.roles.sync_actor()


def labelled(texts: list[Text]) -> dict[str, torch.Tensor]:
    """Texts as transformers takes them."""
    width = max(len(text.ids) for text in texts)
    pad = [width - len(text.ids) for text in texts]
    return {
        "input_ids": torch.tensor([t.ids + [0] * n for t, n in zip(texts, pad, strict=True)]),
        "attention_mask": torch.tensor(
            [[1] * len(t.ids) + [0] * n for t, n in zip(texts, pad, strict=True)]
        ),
        "labels": torch.tensor(
            [
                [i if c else -100 for i, c in zip(*t, strict=True)] + [-100] * n
                for t, n in zip(texts, pad, strict=True)
            ]
        ),
    }


# --- the loss


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_the_one_transformers_computes(family, trainer, layout):
    made = trainer(family, *LAYOUTS[layout])
    ptx = ptx_of(made, micro_batch_size=3)
    assert any(0 in text.counts[1:] for text in ptx.held_out)  # a prompt does not count
    given = labelled(ptx.held_out)
    start = ptx.held_out_loss()
    for _ in range(2):
        with torch.no_grad(), made.roles.sampling():
            expected = float(made.roles.actor(**given).loss)
        assert ptx.held_out_loss() == pytest.approx(expected, abs=1e-5)
        perturb(made)
    assert abs(ptx.held_out_loss() - start) > 1e-3


@pytest.mark.parametrize("layout", ["separate", "shared_trunk"])
def test_its_gradient_is_the_one_transformers_computes(family, trainer, layout):
    made = trainer(family, *LAYOUTS[layout])
    ptx = ptx_of(made, coef=3.0, batch_size=len(ROWS), micro_batch_size=4)
    loss = ptx.backward(made.accelerator)
    assert loss == pytest.approx(ptx.held_out_loss(), abs=1e-5)
    found = policy_gradients(made)
    assert not any(name.startswith("value") for name in found)
    model = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    (3.0 * model(**labelled(ptx.texts)).loss).backward()
    if layout == "separate":
        expected = {n: p.grad for n, p in model.base_model.named_parameters()}
        for name, gradient in expected.items():
            assert torch.allclose(found[f"policy.{name}"], gradient, atol=1e-4), name
        head = model.get_output_embeddings().weight.grad
        known = [g for g in found.values() if g.shape == head.shape]
        assert any(torch.allclose(gradient, head, atol=1e-4) for gradient in known)
    else:
        mine = [gradient for name, gradient in found.items() if ".0." in name]
        top, whole = f".{family.layers - 1}.", model.base_model.named_parameters()
        theirs = [weight.grad for name, weight in whole if top in name]
        assert len(mine) == len(theirs) > 4
        for a, b in zip(mine, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_change_memory_not_gradients(llama, trainer, layout):
    results = []
    for size in (1, 3, 8):
        made = trainer(llama, *LAYOUTS[layout])
        perturb(made)
        ptx = ptx_of(made, coef=0.7, batch_size=8, micro_batch_size=size)
        ptx.start(3, 1)
        results.append((ptx.backward(made.accelerator), policy_gradients(made)))
    for loss, gradients in results[:2]:
        assert loss == pytest.approx(results[2][0], abs=1e-6)
        assert gradients.keys() == results[2][1].keys()
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, results[2][1][name], atol=1e-6), name
    assert max(float(gradient.abs().max()) for gradient in results[0][1].values()) > 1e-3


class MostRows(TorchDispatchMode):
    """The most rows, of a width, of any tensor that comes up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and value.shape[-1:] == (self.width,):
                self.rows = max(self.rows, value.numel() // self.width)
        return result


def test_logits_of_all_tokens_never_exist(llama, trainer, monkeypatch):
    monkeypatch.setattr(logprobs, "LOGIT_ROWS", 8)
    made = trainer(llama, *LAYOUTS["shared_trunk"])
    ptx = ptx_of(made, coef=1.0, batch_size=8)
    sizes = made.roles.actor.config
    with MostRows(sizes.vocab_size) as watched:
        ptx.backward(made.accelerator)
    assert 8 <= watched.rows <= sizes.hidden_size  # the head itself, turned
    assert sum(sum(text.counts) for text in ptx.texts[:8]) > 2 * sizes.hidden_size


# --- beside PPO


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_gradients_are_in_one_step(llama, trainer, texts, monkeypatch, layout):
    """What γ adds to a step's gradient is γ times that of the texts alone."""
    found = []
    for coef in (0.0, 0.5):
        made = with_ptx(
            trainer, llama, *LAYOUTS[layout], f"ptx.data={texts}", f"ptx.coef={coef}",
            "ppo.max_grad_norm=1e9", "ppo.num_mini_batches=1", "ppo.num_ppo_epochs=1",
        )  # fmt: skip
        perturb(made)
        monkeypatch.setattr(
            made.optimisation.optimizer, "step", lambda m=made: found.append(policy_gradients(m))
        )
        metrics = made.step()
        assert ("loss/ptx" in metrics) == (coef > 0)
    alone = with_ptx(trainer, llama, *LAYOUTS[layout], f"ptx.data={texts}", "ptx.coef=0.5")
    perturb(alone)
    loss = alone.ptx.backward(alone.accelerator)
    assert metrics["loss/ptx"] == pytest.approx(loss, abs=1e-6)
    added = policy_gradients(alone)
    assert len(added) > 4
    for name, gradient in found[1].items():
        expected = found[0][name] + added.get(name, torch.zeros(()))
        assert torch.allclose(gradient, expected, atol=1e-5), name
    assert max(float(gradient.abs().max()) for gradient in added.values()) > 1e-3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weight_zero_measures_and_changes_no_bit(llama, trainer, texts, layout):
    plain = trainer(llama, *LAYOUTS[layout], "run.name=plain")
    plain.train()
    made = with_ptx(trainer, llama, *LAYOUTS[layout], "run.name=zero", f"ptx.data={texts}")
    made.train()
    assert equal(weights(made), weights(plain))
    a, b = (read_metrics(run.run.path / "metrics.jsonl") for run in (plain, made))
    for before, after in zip(a, b, strict=True):
        measured = {"eval/ptx_loss"} if "eval/scores" in before else set()
        assert after.keys() - before.keys() == measured
        assert all(after[key] == before[key] for key in before if not key.startswith("time/"))


def test_while_only_the_value_learns_the_policy_stays(llama, trainer, texts):
    made = with_ptx(trainer, llama, f"ptx.data={texts}", "ptx.coef=1", "ppo.value_warmup_updates=1")
    before = {n: w for n, w in weights(made).items() if not n.startswith("value")}
    assert "loss/ptx" not in made.step()
    after = {n: w for n, w in weights(made).items() if not n.startswith("value")}
    assert equal(after, before)
    assert made.step()["loss/ptx"] > 0


def test_a_loss_that_is_not_finite_stops_before_the_step(llama, trainer, texts, monkeypatch):
    made = with_ptx(trainer, llama, f"ptx.data={texts}", "ptx.coef=1")
    real = made.ptx._summed_loss
    monkeypatch.setattr(made.ptx, "_summed_loss", lambda found: real(found) * float("nan"))
    before = weights(made)
    with pytest.raises(UserError, match="NaN or infinite at update 1"):
        made.step()
    assert equal(weights(made), before)


# --- which texts


def drawn(ptx: Ptx, updates: int, steps: int) -> list[list[int]]:
    found = []
    for update in range(updates):
        ptx.start(update, steps)
        found += [[text.ids[0] for text in ptx._next_batch()] for _ in range(steps)]
    return found


def numbered(count: int, batch_size: int, **given) -> Ptx:
    texts = [Text([i, 0], [0, 1]) for i in range(count)]
    settings = PtxSettings(data="x", coef=1.0, batch_size=batch_size)
    return Ptx(settings, texts, [], None, **({"seed": 0} | given))


def test_every_text_comes_once_before_any_comes_twice_in_a_new_order():
    order = [i for batch in drawn(numbered(10, 4), 5, 2) for i in batch]
    rounds = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in rounds)
    assert len({tuple(one) for one in rounds}) == 4
    again = [i for batch in drawn(numbered(10, 4, seed=1), 5, 2) for i in batch]
    assert again[:10] != order[:10]


def test_the_texts_of_an_update_follow_from_its_number():
    """Also where the passes of an earlier one ended early."""
    whole = drawn(numbered(10, 4), 3, 2)
    resumed = numbered(10, 4)
    resumed.start(0, 2)
    resumed._next_batch()
    resumed.start(2, 2)
    assert [[text.ids[0] for text in resumed._next_batch()] for _ in range(2)] == whole[4:]


def test_processes_share_a_batch(llama, trainer, monkeypatch):
    """The gradients of two, averaged as theirs are, are those of one that takes all texts."""
    made = trainer(llama)
    found = encode(ROWS, made.tokenizer, 512, "rows")
    settings = PtxSettings(data="rows", coef=1.0, batch_size=6, micro_batch_size=2)
    monkeypatch.setattr(Accelerator, "reduce", lambda _, value, __: value)
    gradients, losses = [], []
    for process, world in ((0, 1), (0, 2), (1, 2)):
        made.roles.trained.zero_grad(set_to_none=True)
        ptx = Ptx(settings, found, [], made.roles, seed=0, process=process, world=world)
        losses.append(ptx.backward(made.accelerator))
        gradients.append(policy_gradients(made))
    assert losses[1] + losses[2] == pytest.approx(losses[0], abs=1e-6)
    for name, gradient in gradients[0].items():
        mean = (gradients[1][name] + gradients[2][name]) / 2
        assert torch.allclose(mean, gradient, atol=1e-6), name


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"ptx.batch_size=4: must divide .* 3, exactly"):
        numbered(10, 4, world=3)


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "The kettle hums."}],
        [{"prompt": "Why?", "completion": "The kettle hums."}],
        [{"messages": [{"role": "user", "content": "Why?"},
                       {"role": "assistant", "content": "The kettle hums."}]}],
    ],
    ids=["text", "completion", "messages"],
)  # fmt: skip
def test_every_kind_of_text_ends_in_eos_and_counts_what_is_said(llama, rows):
    tokenizer = load_tokenizer(str(llama.policy))
    (text,) = encode(rows, tokenizer, 512, "rows")
    assert len(text.ids) == len(text.counts)
    assert text.ids[-1] == tokenizer.eos_token_id
    assert text.counts[0] == 0
    assert text.counts[-1] == 1
    said = tokenizer.decode([i for i, c in zip(*text, strict=True) if c])
    assert "kettle hums." in said
    assert ("Why" in said) == ("messages" in rows[0])


def test_long_texts_are_cut_and_what_has_nothing_left_is_left_out(llama, capsys):
    tokenizer = load_tokenizer(str(llama.policy))
    rows = [{"text": SENTENCES[0]}, {"prompt": PROMPTS[1], "completion": "Yes."}]
    (text,) = encode(rows, tokenizer, 6, "rows")
    assert len(text.ids) == 6
    said = capsys.readouterr().err
    assert "ppo: rows: cut 2 texts at ptx.max_length=6 tokens, left out 1" in said
    with pytest.raises(UserError, match="no text has a token to learn within"):
        encode(rows[1:], tokenizer, 6, "rows")


def refused(config: PPOStage) -> str:
    with pytest.raises(UserError) as error:
        stage.run(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_texts_that_cannot_be_used_are_refused(llama, config, tmp_path):
    assert "ptx.max_length=9999: beyond the 512 positions" in refused(
        config(llama, "ptx.data=demo:demonstrations", "ptx.max_length=9999")
    )
    missing = tmp_path / "none.jsonl"
    assert f"{missing}: no such file" in refused(config(llama, f"ptx.data={missing}"))
    assert "holds prompt_only rows" in refused(config(llama, "ptx.data=demo:prompts"))


# --- a run


@pytest.mark.parametrize("layout", ["separate", "lora on a trunk"])
def test_a_resumed_run_equals_the_uninterrupted_one(llama, trainer, texts, monkeypatch, layout):
    given = [
        *LAYOUTS[layout], "ppo.total_episodes=40", "ppo.save_every=2", "ppo.eval_every=2",
        f"ptx.data={texts}", "ptx.coef=0.5", "ptx.batch_size=3",
    ]  # fmt: skip
    whole = with_ptx(trainer, llama, "run.name=whole", *given)
    whole.train()
    first = with_ptx(trainer, llama, "run.name=cut", *given)
    real = first.step

    def step():
        if first.global_step == 3:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(first, "step", step)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed = with_ptx(trainer, llama, "run.name=cut", *given)
    resumed.train()
    assert equal(weights(resumed), weights(whole))
    a, b = (
        [{k: v for k, v in row.items() if "time/" not in k} for row in read_metrics(path)]
        for path in (run.run.path / "metrics.jsonl" for run in (whole, resumed))
    )
    assert a == b


@pytest.mark.parametrize("layout", ["separate", "shared_trunk", "lora"])
def test_what_is_mixed_in_is_not_forgotten(llama, runs, prompts, texts, layout):
    """A policy that PPO moves away from the texts, and one that goes on learning them."""
    ends = {}
    for coef in (0.0, 1.0):
        given = [
            *arguments(llama, runs, prompts), *LAYOUTS[layout], f"run.name=gamma-{coef}",
            "ppo.total_episodes=96", "ppo.lr_scheduler=constant", "ppo.kl_coef=0",
            f"ptx.data={texts}", f"ptx.coef={coef}", "ptx.test_fraction=0.25",
        ]  # fmt: skip
        folder = stage.run(load_config(PPOStage, None, given))
        rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval/ptx_loss" in row]
        ends[coef] = [row["eval/ptx_loss"] for row in rows]
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["eval/ptx_loss"] == ends[coef][-1]
    assert ends[0.0][0] == ends[1.0][0]
    assert ends[1.0][-1] < ends[1.0][0] - 0.3
    assert ends[1.0][-1] < ends[0.0][-1] - 0.3
