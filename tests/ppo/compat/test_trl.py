"""TRL's names do what the library does: the same weights after a step, the same samples. Other names are refused."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import ppo
import ppo.compat.trl
from ppo.compat.trl import (
    AutoModelForCausalLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    respond_to_batch,
    set_seed,
)
from tests.fakes import Letters, tiny_gpt2, tiny_llama

PLAIN = {"do_sample": True, "top_k": 0.0, "top_p": 1.0, "min_length": -1, "pad_token_id": 1}
QUERIES = [torch.tensor(ids) for ids in ([2, 3, 4], [5, 6], [7], [8, 9, 10, 11])]
SETTINGS = {"batch_size": 4, "mini_batch_size": 2, "ppo_epochs": 3, "learning_rate": 1e-3, "max_grad_norm": 1.0}


def wrap(model):
    return AutoModelForCausalLMWithValueHead.from_pretrained(model)


def make(model=None, ref_model=None, dataset=None, **changes):
    return PPOTrainer(PPOConfig(**{**SETTINGS, **changes}), wrap(model or tiny_gpt2()), ref_model, Letters(), dataset)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def moved(model, seed=5):
    """The same model with its weights changed a little, so that KL is not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


@pytest.mark.parametrize("kl_penalty", ["kl", "mse"])
def test_a_step_is_the_library_s_own_update_on_the_same_rollout(kl_penalty):
    original, policy = tiny_gpt2(), moved(tiny_gpt2())
    config = ppo.Config(
        prompts_per_step=4, minibatch=2, microbatch=2, epochs=3, response_length=6, learning_rate=1e-3,
        kl_estimator="k1" if kl_penalty == "kl" else "k2",
    )  # fmt: skip
    reference = ppo.FrozenReference(original, config.sampling())
    scores = [0.5, -1.0, 2.0, 0.25]
    library = ppo.Trainer(
        copy.deepcopy(policy), [q.tolist() for q in QUERIES], lambda samples: scores, config, reference=reference
    )
    rollout = library.rollout()
    before = weights(library.policy.actor).clone()
    shim = make(copy.deepcopy(policy), wrap(original), kl_penalty=kl_penalty)
    shim.trainer.generator.set_state(library.generator.get_state())  # the order of the minibatches
    queries = [torch.tensor(sample.prompt_ids) for sample in rollout.samples]
    stats = shim.step(queries, [torch.tensor(s.ids) for s in rollout.samples], [torch.tensor(x) for x in scores])
    metrics = library.update(rollout)
    difference = (weights(library.policy.actor) - weights(shim.trainer.policy.actor)).norm()
    assert difference < 1e-3 * (weights(library.policy.actor) - before).norm()
    assert shim.model.v_head is shim.trainer.policy.actor.value_head
    assert stats["ppo/loss/policy"] == pytest.approx(metrics["policy/loss"], abs=1e-4)
    assert stats["ppo/loss/total"] == pytest.approx(metrics["policy/loss"] + 0.1 * metrics["value/loss"], abs=1e-4)
    assert stats["objective/kl"] == pytest.approx(rollout.metrics["kl/per_sequence"], abs=1e-4)
    assert stats["objective/kl"] > 0.01


def test_the_statistics_are_what_their_names_say():
    """They equal plain loops over the model's own logits."""
    original, policy = tiny_llama(), moved(tiny_llama())
    trainer = make(copy.deepcopy(policy), wrap(original))
    responses = [torch.tensor(ids) for ids in ([3, 4], [5, 6, 7, 1], [8], [9, 2, 2])]
    stats = trainer.step(QUERIES, responses, [1.0, 2.0, 4.0, 5.0])

    @torch.no_grad()
    def logprobs(model, query, response):
        table = model(torch.cat([query, response])[None]).logits[0].double().log_softmax(-1)
        return [float(table[len(query) - 1 + t, token]) for t, token in enumerate(response)]

    pairs = list(zip(QUERIES, responses, strict=True))
    new = [logprobs(policy.eval(), *pair) for pair in pairs]
    ref = [logprobs(original.eval(), *pair) for pair in pairs]
    kls = [sum(a - b for a, b in zip(*rows, strict=True)) for rows in zip(new, ref, strict=True)]
    assert stats["objective/kl"] == pytest.approx(sum(kls) / 4, abs=1e-3)
    assert stats["objective/kl_dist"].tolist() == pytest.approx(kls, abs=1e-3)
    assert stats["objective/entropy"] == pytest.approx(-sum(map(sum, new)) / 4, abs=1e-3)
    assert stats["objective/kl_coef"] == 0.2
    assert stats["ppo/mean_non_score_reward"] == pytest.approx(-0.2 * sum(kls) / 10, abs=1e-3)
    assert stats["ppo/mean_scores"] == 3
    assert stats["ppo/std_scores"] == pytest.approx(math.sqrt(10 / 3), abs=1e-4)
    assert stats["tokens/responses_len_mean"] == 2.5
    assert stats["tokens/queries_dist"].tolist() == [3, 2, 1, 4]
    error = min(max(sum(kls) / 4 / 6 - 1, -0.2), 0.2)
    assert trainer.trainer.kl.coef == pytest.approx(0.2 * (1 + error * 4 / 10_000))


def test_without_a_reference_kl_is_measured_against_the_start():
    trainer = make(moved(tiny_gpt2()), init_kl_coef=0.0)
    responses = trainer.generate(QUERIES, return_prompt=False, max_new_tokens=5, **PLAIN)
    assert trainer.step(QUERIES, responses, [0.0, 1.0, 2.0, 3.0])["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert trainer.step(QUERIES, responses, [0.0, 1.0, 2.0, 3.0])["objective/kl"] != pytest.approx(0, abs=1e-4)


def test_generate_answers_one_query_or_many():
    trainer = make()
    one = trainer.generate(QUERIES[0], max_new_tokens=5, **PLAIN)
    assert one.shape[0] == 1
    assert one[0, :3].tolist() == [2, 3, 4]
    assert 1 <= trainer.generate(QUERIES[0], return_prompt=False, max_new_tokens=5, **PLAIN).shape[1] <= 5
    many = trainer.generate(QUERIES, length_sampler=lambda: 7, eos_token_id=-1, **PLAIN)
    assert [len(r) for r in many] == [len(q) + 7 for q in QUERIES]
    mine, reference = trainer.generate(QUERIES, generate_ref_response=True, max_new_tokens=4, **PLAIN)
    assert len(mine) == len(reference) == 4


def test_the_same_seed_samples_what_the_library_samples():
    trainer, generator = make(seed=3), torch.Generator().manual_seed(3)
    seed = int(torch.randint(2**62, (), generator=generator))
    expected = ppo.generate(tiny_gpt2(), [q.tolist() for q in QUERIES], ppo.Sampling(response_length=6), seed=seed)
    responses = trainer.generate(QUERIES, return_prompt=False, max_new_tokens=6, **PLAIN)
    assert [r.tolist() for r in responses] == [
        t[m].tolist() for t, m in zip(expected.tokens, expected.mask, strict=True)
    ]


def test_sampling_otherwise_than_at_temperature_1_without_filters_warns():
    with pytest.warns(RuntimeWarning, match="KL can come out negative"):
        make().generate(QUERIES[0], max_new_tokens=3, do_sample=True, top_k=5)
    with pytest.warns(RuntimeWarning, match="top_k=50"):
        make().generate(QUERIES[0], max_new_tokens=3, do_sample=True)
    with pytest.warns(RuntimeWarning, match="temperature=0"):
        make().generate(QUERIES[0], max_new_tokens=3)


class Tracker:
    def __init__(self):
        self.logged = []

    def log(self, values, step=None):
        self.logged.append((step, values))


def test_the_loop_of_the_demem_notebook(monkeypatch):
    """The notebook's code with other models, data and reward: one query at a time, and the response cut out of it."""
    tracker, recomputed = Tracker(), []
    checkpointed = ppo.compat.trl.checkpointed_layers

    def noted(actor):
        recomputed.append(actor.policy)
        return checkpointed(actor)

    monkeypatch.setattr(ppo.compat.trl, "checkpointed_layers", noted)
    with pytest.warns(UserWarning, match="optimize_cuda_cache"):
        config = PPOConfig(
            model_name="lab", learning_rate=1.41e-5, batch_size=4, forward_batch_size=2, ppo_epochs=8,
            optimize_cuda_cache=True, remove_unused_columns=False, log_with=tracker,
        )  # fmt: skip
    tokenizer = Letters()
    ds = [{"tokens": q.tolist(), "query": tokenizer.decode(q.tolist()), "suffix": "ab"} for q in QUERIES]

    def collater(data):
        return dict((key, [d[key] for d in data]) for key in data[0])  # noqa: C402

    model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(eos=None), device_map="auto")
    model_ref = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(eos=None), device_map="auto")
    optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=config.learning_rate)
    ppo_trainer = PPOTrainer(
        config, model, ref_model=model_ref, tokenizer=tokenizer, dataset=ds, data_collator=collater, optimizer=optimizer
    )
    gen_kwargs = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": 1}
    before = weights(model).clone()
    for _epoch, batch in zip(range(2), iter(ppo_trainer.dataloader), strict=False):
        query_tensors = [torch.tensor(t).long().to(ppo_trainer.accelerator.device) for t in batch["tokens"]]
        response_tensors = []
        for i in range(ppo_trainer.config.batch_size):
            gen_len = 5
            gen_kwargs["max_new_tokens"] = gen_len
            response = ppo_trainer.generate(query_tensors[i], **gen_kwargs)
            response_tensors.append(response.squeeze()[-gen_len:])
        batch["response"] = [tokenizer.decode(r.squeeze()) for r in response_tensors]
        rewards = torch.tensor([-sum(map(ord, r)) / 500 for r in batch["response"]], dtype=float)
        rewards = [output.clone() for output in rewards]
        model.gradient_checkpointing_enable()
        model.pretrained_model.config.use_cache = False
        stats = ppo_trainer.step(query_tensors, response_tensors, rewards)
        ppo_trainer.log_stats(stats, batch, rewards)
    assert recomputed == [model.pretrained_model]  # in the one step there was
    assert not torch.equal(weights(model), before)
    ((step, values),) = tracker.logged
    assert step == 0
    assert values["env/reward_mean"] == pytest.approx(float(sum(rewards)) / 4)


def test_the_functions_of_trl_core():
    set_seed(1)
    lengths = [LengthSampler(2, 5)() for _ in range(50)]
    assert set(lengths) == {2, 3, 4}
    model = wrap(tiny_gpt2())
    queries = torch.tensor([[2, 3], [4, 5]])
    set_seed(1)
    first = respond_to_batch(model, queries, txt_len=6)
    set_seed(1)
    assert torch.equal(respond_to_batch(model, queries, txt_len=6), first)
    assert first.shape == (2, 6)


def test_a_step_takes_responses_of_a_fixed_length_with_an_end_token_inside():
    """The loop of TRL's first scripts. All tokens are trained on, those behind an EOS too."""
    original = moved(tiny_gpt2())
    trainer = make(copy.deepcopy(original))
    queries = torch.tensor([[2, 3], [4, 5], [6, 7], [8, 9]])
    set_seed(3)
    drawn = respond_to_batch(trainer.model, queries, txt_len=6)
    for row, ids in enumerate(([1, 5, 7, 2, 3, 4], [7, 8, 9, 4, 1, 5], [7, 8, 1, 1, 1, 1], [2, 3, 1, 0, 0, 0])):
        drawn[row] = torch.tensor(ids)
    before = weights(trainer.trainer.policy.actor).clone()
    stats = trainer.step(list(queries), list(drawn), [1.0, 2.0, 4.0, 5.0])
    assert stats["tokens/responses_len_mean"] == 6
    assert not torch.equal(weights(trainer.trainer.policy.actor), before)
    with torch.no_grad():
        table = original.eval()(torch.cat([queries, drawn], dim=1)).logits[:, 1:-1].double().log_softmax(-1)
    chosen = table.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
    assert stats["objective/entropy"] == pytest.approx(-float(chosen.sum()) / 4, abs=1e-3)


def test_the_settings_of_an_adam_are_taken_over():
    model = wrap(tiny_gpt2())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, betas=(0.8, 0.9), eps=1e-6)
    config = PPOTrainer(PPOConfig(**SETTINGS), model, optimizer=optimizer).trainer.config
    assert (config.learning_rate, config.adam_beta1, config.adam_beta2, config.adam_eps) == (3e-4, 0.8, 0.9, 1e-6)
    for wrong, message in (
        (torch.optim.SGD(model.parameters(), lr=0.1), "a SGD is not supported"),
        (torch.optim.Adam(model.parameters(), weight_decay=0.1), "weight_decay"),
        (torch.optim.Adam(model.pretrained_model.parameters()), "does not hold exactly the parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            PPOTrainer(PPOConfig(**SETTINGS), wrap(tiny_gpt2()) if "hold" in message else model, optimizer=wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PPOConfig(learning_rte=1e-5), "did you mean 'learning_rate'"),
        (lambda: PPOConfig(tracker_kwargs={"wandb": {}}), "make the tracker yourself"),
        (lambda: PPOConfig(use_score_norm=True), "subtract the mean"),
        (lambda: PPOConfig(num_ppo_epochs=4), "the classic one is ppo_epochs"),
        (lambda: PPOConfig(per_device_train_batch_size=4), "the classic one is batch_size"),
        (lambda: PPOConfig(stop_token="eos"), "pass eos_token_id to generate"),
        (lambda: PPOConfig(missing_eos_penalty=1.0), "subtract it from the scores"),
        (lambda: PPOConfig(kl_penalty="full"), "use 'kl'"),
        (lambda: PPOConfig(batch_size=10, mini_batch_size=4), "must be a multiple of"),
        (lambda: PPOConfig(log_with="wandb"), "pass such an object"),
        (lambda: PPOConfig(gamma=2.0), "gamma=2.0 must lie in"),
        (lambda: make().generate(QUERIES[0], max_length=20), "pass max_new_tokens"),
        (
            lambda: make().generate(QUERIES[0], max_new_tokens=4, eos_token_id="</s>"),
            "eos_token_id='</s>': pass a token",
        ),
        (
            lambda: make().generate(QUERIES[0], generation_config=GenerationConfig()),
            r"generation_config=[^\n]*: pass max",
        ),
        (lambda: PPOTrainer(PPOConfig(**SETTINGS), wrap(tiny_gpt2()), nonsense=1), "take nonsense=1: leave it out$"),
        (lambda: make().step(QUERIES, QUERIES, None), r"got NoneType as scores, batch_size is"),
        (lambda: make().step(QUERIES, QUERIES, torch.tensor(1.0)), r"got Tensor as scores, batch_size is"),
        (lambda: make().generate(QUERIES[0], **PLAIN), "needs max_new_tokens"),
        (lambda: make().generate(QUERIES[0], max_new_tokens=4, min_length=3), "pass min_new_tokens"),
        (lambda: make().generate(QUERIES[0], max_new_tokens=4, num_beams=3), "beams are no samples"),
        (lambda: make().step(QUERIES[:2], QUERIES[:2], [1.0, 2.0]), "2 queries, batch_size is 4"),
        (lambda: make().step(QUERIES, QUERIES, [1.0, 2.0, 3.0, math.nan]), "score 3 is nan"),
        (lambda: make().step(QUERIES, QUERIES, [torch.ones(2)] * 4), "score 0 has the shape"),
        (lambda: make().step(QUERIES, [torch.tensor([]).long()] * 4, [1.0] * 4), r"responses\[0\] holds no token"),
        (lambda: make().step([q[None] for q in QUERIES], QUERIES, [1.0] * 4), "query 0 is"),
        (lambda: make().step(QUERIES, QUERIES, [1.0] * 4, response_masks=QUERIES), "response_masks"),
        (lambda: make().log_stats({}, {"query": []}, [1.0]), "no column 'response'"),
        (lambda: make().step(QUERIES, QUERIES, [None, 1.0, 1.0, 1.0]), "score 0 is None, a NoneType: give a number"),
        (
            lambda: make().step(QUERIES, QUERIES, [1.0, {"score": 1.0}, 1.0, 1.0]),
            "score 1 is .* a dict: take the number",
        ),
        (lambda: make().step(QUERIES, QUERIES, [[1.0], [1.0], [1.0], [1.0]]), "score 0 is .* a list: take the number"),
        (lambda: make().step(QUERIES, QUERIES, [10**400] * 4), "score 0 is 1000"),
        (lambda: make().step(QUERIES, QUERIES, np.ones((4, 2))), "score 0 has the shape"),
        (lambda: make().generate(QUERIES[0], **(PLAIN | {"temperature": 0.0}), max_new_tokens=4), "do_sample=False"),
        (lambda: make().generate(QUERIES[0], **(PLAIN | {"temperature": "1"}), max_new_tokens=4), "a number above 0"),
        (lambda: make().generate(QUERIES[0], max_new_tokens=4, attention_mask=1), "queries have no padding"),
        (lambda: PPOTrainer(args=PPOConfig(), model=wrap(tiny_gpt2())), "the classic one is config"),
        (lambda: PPOTrainer(PPOConfig(), wrap(tiny_gpt2()), value_model=1), "value head is on the model"),
        (
            lambda: PPOTrainer({"batch_size": 4}, wrap(tiny_gpt2())),
            r"is a dict: make one of it, PPOConfig\(\*\*config\)",
        ),
        (lambda: PPOTrainer(model=wrap(tiny_gpt2())), "config=None is a NoneType: give a PPOConfig"),
        (lambda: PPOTrainer(PPOConfig()), "model is missing"),
        (lambda: make(dataset=[{"query": "a"}] * 3), "dataset has 3 rows, fewer than batch_size=4"),
        (lambda: make(dataset=iter([{"query": "a"}] * 8)), r"pass list\(…\) of it"),
        (lambda: PPOTrainer(PPOConfig(), tiny_gpt2()), "wrap it"),
        (lambda: PPOTrainer(PPOConfig(), wrap(tiny_gpt2()), lr_scheduler=1), "schedule"),
        (lambda: AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(), peft_config=1), "get_peft_model"),
        (lambda: AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(), device_map={"a": 0}), "device_map"),
        (lambda: AutoModelForCausalLMWithValueHead.from_pretrained("/nowhere"), "cannot be loaded"),
        (lambda: LengthSampler(4, 4), "must be below"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_end_token_beyond_the_vocabulary_ends_nothing():
    """StackLLaMA's scripts pass 100_000, so that every response has its full length."""
    assert (
        len(make().generate(QUERIES[0], **PLAIN, eos_token_id=100_000, max_new_tokens=9, return_prompt=False)[0]) == 9
    )
    every = list(range(tiny_gpt2().config.vocab_size))
    assert (
        len(make().generate(QUERIES[0], **PLAIN, eos_token_id=[10**6, *every], max_new_tokens=9)[0])
        == len(QUERIES[0]) + 1
    )


def test_scores_may_be_a_column_of_logits():
    column = torch.tensor([[0.5], [1.0], [-1.0], [0.0]])
    for scores in (column, list(column), column.numpy(), [s.item() for s in column]):
        assert make().step(QUERIES, QUERIES, scores)["ppo/mean_scores"] == pytest.approx(0.125)


def test_unsupported_settings_that_are_false_or_none_are_accepted():
    assert PPOConfig(use_score_norm=False, early_stopping=True, target_kl=2.0).to_ppo().stop_kl_per_token == 3.0
    AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(), load_in_8bit=False, peft_config=None)
    PPOTrainer(PPOConfig(**SETTINGS), wrap(tiny_gpt2()), num_shared_layers=None)
    assert PPOConfig(batch_size=1).mini_batch_size == 1
    assert PPOConfig(batch_size=256).mini_batch_size == 128
