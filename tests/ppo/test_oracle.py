"""Two whole steps of the library against the oracle, for every option that touches the mathematics.

In float64 weights, values, rewards, moments and statistics agree to 1e-9, in float32 to 1e-5 in all cases
but one. The library samples; the oracle is given the responses and the raw rewards, and makes everything else itself
(tests/oracle.py).
"""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from models.lora import LoraConfig, add_lora
from ppo import Config, Trainer
from ppo.sampler import sample_policy
from tests.oracle import Given, Oracle

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 2], [3, 3]]
RETAIN = [[2, 4, 6, 8, 10, 3], [5, 7], [9]]
VOCAB = 11

# adam_eps is large, because Adam would otherwise turn rounding into steps where the true gradient is 0, as it is for
# the bias of attention keys.
BASE = Config(
    prompts_per_step=4, minibatch=2, epochs=2, response_length=5, kl_coef=0.3, learning_rate=0.02, value_coef=0.5,
    adam_eps=1e-3,
)  # fmt: skip
GROUPS = {"prompts_per_step": 2, "samples_per_prompt": 2}

# The changes to BASE. Each case must change a number of the base case, unless it is in UNMOVED.
CASES = {
    "base": {},
    "k2": {"kl_estimator": "k2"},
    "k3": {"kl_estimator": "k3"},
    "k2_loss": {"kl_as": "loss", "kl_estimator": "k2"},
    "k3_loss": {"kl_as": "loss", "kl_estimator": "k3", "kl_controller": "fixed"},
    "no_kl": {"kl_coef": 0.0},
    "fixed_kl": {"kl_controller": "fixed", "kl_coef": 0.7},
    "fast_controller": {"target_kl_per_sequence": 0.05, "kl_horizon_sequences": 10},
    "distribution": {"temperature": 0.7, "min_response_length": 3},
    "top_k": {"top_k": 4, "temperature": 1.5},
    "top_p": {"top_p": 0.7, "min_response_length": 2},
    "top_k_top_p": {"top_k": 6, "top_p": 0.6},
    "replayed_top_k": {"kept_sets": "replay", "top_k": 4, "temperature": 1.5, "logprob_chunk_tokens": 3},
    "replayed_top_p": {
        "kept_sets": "replay",
        "top_p": 0.7,
        "min_response_length": 2,
        "kl_as": "loss",
        "kl_estimator": "k3",
        "entropy_coef": 0.2,
        "microbatch_tokens": 9,
    },
    "scores": {"scale_scores": True, "clip_scores": 0.8, "missing_eos_penalty": 0.3},
    "token_rewards": {"scale_scores": True, "clip_scores": 1.5, "missing_eos_penalty": 0.7},
    "whiten_rewards": {"whiten_rewards": True, "whiten_advantages": False},
    "gae": {"gamma": 0.9, "gae_lambda": 0.6},
    "critic_lambda": {"gae_lambda": 0.6, "value_gae_lambda": 1.0},
    "length_lambda": {"gae_length_alpha": 0.4, "gamma": 0.9, "whiten_advantages": False},
    "both_lambdas": {"gae_length_alpha": 0.9, "value_gae_lambda": 0.3},
    "dr_grpo": {"advantage": "dr_grpo", **GROUPS},
    "reinforce++": {"advantage": "reinforce++"},
    "reinforce++_baseline": {"advantage": "reinforce++_baseline", "kl_as": "loss", "kl_estimator": "k2", **GROUPS},
    "grpo": {"advantage": "grpo", "whiten_rewards": True, **GROUPS},
    "rloo": {"advantage": "rloo", "kl_as": "loss", "kl_estimator": "k3", **GROUPS},
    "mlp_head": {"value_head": "mlp", "value_learning_rate": 0.05},
    "critic_warmup": {
        "critic_warmup_steps": 1,
        "value_head": "critic",
        "retain_coef": 0.5,
        "retain_tokens": 4,
        "weight_decay": 0.1,
        "adam_eps_style": "tensorflow",
        "target_kl_per_sequence": 0.05,
        "kl_horizon_sequences": 10,
    },
    "critic_warmup_detached": {
        "critic_warmup_steps": 1,
        "detach_value_head": True,
        "kl_as": "loss",
        "kl_estimator": "k3",
        "entropy_coef": 0.1,
    },
    "detached_head": {"detach_value_head": True},
    "critic": {"value_head": "critic", "value_learning_rate": 0.01},
    "clips": {"policy_clip": 0.05, "value_clip": 0.02},
    "clip_higher": {"policy_clip": 0.05, "policy_clip_high": 0.3},
    "dual_clip": {"policy_dual_clip": 1.1, "policy_clip": 0.5},
    "gspo": {"policy_loss": "gspo", "policy_clip": 0.02, "loss_mean": "sequences"},
    "gspo_groups": {
        "policy_loss": "gspo",
        "policy_clip": 0.01,
        "policy_clip_high": 0.04,
        "advantage": "grpo",
        **GROUPS,
    },
    "cispo": {"policy_loss": "cispo", "policy_clip": 0.05, "policy_clip_high": 0.1},
    "overlong_penalty": {"overlong_penalty": 0.7, "overlong_tokens": 3, "missing_eos_penalty": 0.2},
    "mask_overlong": {"mask_overlong": True, "minibatch": 1, "loss_mean": "sequences"},
    "mask_overlong_tokens": {
        "mask_overlong": True,
        "minibatch": 4,
        "microbatch": 1,
        "entropy_coef": 0.1,
        "kl_as": "loss",
        "kl_estimator": "k2",
    },
    "positive": {"positive_coef": 0.5, "positive_score": 0.4, "microbatch": 1, "minibatch": 4},
    "positive_none": {"positive_coef": 0.5, "positive_score": 0.8, "loss_mean": "sequences"},
    "reinforce": {"policy_loss": "reinforce", "loss_mean": "constant", "microbatch": 1},
    "importance": {"importance": "token", "importance_cap": 1.3, "old_logprobs": "recompute", "microbatch": 1},
    "importance_masked": {
        "importance": "token",
        "importance_cap": 1.3,
        "importance_beyond": "mask",
        "old_logprobs": "recompute",
        "policy_loss": "cispo",
        "entropy_coef": 0.1,
    },
    "importance_sequences": {
        "importance": "sequence",
        "importance_cap": None,
        "old_logprobs": "recompute",
        "policy_loss": "gspo",
        "policy_clip": 0.02,
        "loss_mean": "sequences",
        "microbatch_tokens": 9,
    },
    "importance_sequences_masked": {
        "importance": "sequence",
        "importance_cap": 1.1,
        "importance_beyond": "mask",
        "old_logprobs": "recompute",
        "policy_loss": "reinforce",
        "kl_as": "loss",
        "kl_estimator": "k2",
    },
    "sequences": {"loss_mean": "sequences", "entropy_coef": 0.1, "minibatch": 4, "microbatch": 1},
    "sequence_sums": {"loss_mean": "sequence_sums", "kl_as": "loss", "kl_estimator": "k2", "microbatch_tokens": 9},
    "no_value_clip": {"value_clip": None, "value_coef": 1.3, "epochs": 3},
    "entropy": {"entropy_coef": 0.2},
    "entropy_filtered": {"entropy_coef": 0.2, "top_k": 5},
    "skips": {"max_mean_ratio": 1.02},
    "never_skips": {"max_mean_ratio": None, "learning_rate": 0.1},
    "stops": {"stop_kl_per_token": 0.01},
    "no_gradient_clip": {"max_grad_norm": None},
    "hard_gradient_clip": {"max_grad_norm": 0.01},
    "retain_lm": {"retain_coef": 0.5, "retain_sequences": 3, "retain_tokens": 4},
    "retain_kl": {"retain_coef": 0.5, "retain_loss": "kl", "retain_sequences": 2, "retain_tokens": 5},
    "retain_kl_without_kl": {"retain_coef": 2.0, "retain_loss": "kl", "kl_coef": 0.0},
    "warm_up": {"warmup_steps": 2},
    "linear": {"schedule": "linear", "total_steps": 3},
    "cosine": {"schedule": "cosine", "total_steps": 3},
    "adam": {"adam_beta1": 0.7, "adam_beta2": 0.9, "adam_eps": 1e-8, "weight_decay": 0.1},
    "tensorflow": {"adam_eps_style": "tensorflow"},
    "lean_adam": {"moment_dtype": "bfloat16", "weight_decay": 0.1, "seed": 3},
    "top_layer": {"train_top_layers": 1, "entropy_coef": 0.1},
    "lora": {"learning_rate": 0.05},
    "lora_snapshot": {"reference_adapter": "snapshot"},
    "microbatches": {"microbatch": 1, "old_logprobs": "recompute", "minibatch": 4},
    "budget": {"microbatch_tokens": 9, "minibatch": 4, "entropy_coef": 0.1},
    "chunks": {"logprob_chunk_tokens": 3, "reference_batch_tokens": 8, "rollout_slots": 1},
    "checkpointed": {"gradient_checkpointing": True},
}
UNMOVED = {"base", "chunks", "checkpointed"}

# The numbers that agree less closely than 1e-5 in float32, and why.
LOOSER_IN_FLOAT32 = {
    "lean_adam": 2**-7,  # a moment whose last bit differs may be rounded to another bfloat16 number
}

# With adam_eps=1e-8, rounding alone moves a weight whose true gradient is 0, in float32 (see above).
ONLY_IN_FLOAT32 = {"adam": {"adam_eps": BASE.adam_eps}}

# The fields that no case sets, and why they need none.
NOT_MATHEMATICS = {
    "eval_every_steps": "an evaluation looks on (tests/ppo/evaluation/test_evaluator.py)",
    "best_metric": "which step is kept (tests/ppo/checkpoint/test_best.py)",
    "best_is": "which step is kept (tests/ppo/checkpoint/test_best.py)",
    "redraw_rounds": "which prompts a step has, not what becomes of them (tests/ppo/test_draws.py)",
    "reference_dtype": "precision: a frozen copy in bfloat16 is another reference (tests/ppo/test_reference.py)",
    "autocast": "precision: off is the default and exact; bfloat16 has its own bounds (tests/ppo/test_trainer.py)",
    "gather_for_rollouts": "several processes: equal to one within rounding (tests/ppo/distributed/test_processes.py)",
    "sharding": "several processes: equal to one within rounding (tests/ppo/distributed/test_processes.py)",
    "compiled_rollout": "the same samples by another step (tests/ppo/generation/test_static.py)",
    "deterministic": "bits, not numbers (tests/ppo/run/test_determinism.py)",
    "checks": "they look on (tests/ppo/checks/test_checks.py)",
    "max_logprob_gap_nats": "a bound of the checks (tests/ppo/checks/test_checks.py)",
    "stop_after_skipped_updates": "when a run ends whose gradients are not finite (tests/ppo/checks/test_checks.py)",
    "reward_timeout_seconds": "time (tests/ppo/run/test_reward_guard.py)",
    "save_every_steps": "files",
    "keep_checkpoints": "files",
}


def tiny(dtype):
    """A GPT-2 of 2 thousand weights, far enough from uniform for clips and filters to act."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=2, n_head=2, n_positions=12, bos_token_id=0, eos_token_id=1)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(5)
    return model.to(dtype).eval()


def scores(samples):
    return [sum((i * 7 % 11) / 7 for i in s.ids) - len(s.ids) for s in samples]


def token_rewards(samples):
    return [[(i * 7 % 11) / 7 - 0.1 * t for t, i in enumerate(s.ids)] for s in samples]


def other_engine(policy, prompts, *, seed, request_ids):
    """The library's own samples, said to be drawn with other probabilities."""
    drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
    other = (drawn.logprobs + 0.25 * (drawn.tokens * 7 % 5 - 2)).clamp(max=0) * drawn.mask
    return dataclasses.replace(drawn, logprobs=other)


def build(name, dtype):
    """A trainer, and the oracle for the same policy."""
    changes, model = dict(CASES[name]), tiny(dtype)
    if dtype == torch.float32:
        changes |= ONLY_IN_FLOAT32.get(name, {})
    if name.startswith("lora"):
        add_lora(model, LoraConfig(("c_attn", "c_fc"), rank=2), generator=torch.Generator().manual_seed(1))
    if name == "lora_snapshot":  # an adapter that already changes the outputs
        for module in model.modules():
            if hasattr(module, "lora_B"):
                torch.nn.init.normal_(module.lora_B, std=0.1)
    model.to(dtype)
    if changes.get("train_top_layers") == 1:
        for parameter in set(model.parameters()) - set(model.transformer.h[-1].parameters()):
            parameter.requires_grad_(False)
    start = copy.deepcopy(model).double()
    reward = token_rewards if name == "token_rewards" else scores
    sampler = other_engine if "importance" in changes else None
    trainer = Trainer(model, PROMPTS, reward, BASE.replace(**changes), retain=RETAIN, sampler=sampler)
    config = SimpleNamespace(**dataclasses.asdict(trainer.config))
    layers = [x for x in getattr(trainer.policy.actor.value_head, "layers", []) if hasattr(x, "weight")]
    head = [tuple(p.detach().double().requires_grad_() for p in (x.weight, x.bias)) for x in layers]
    oracle = Oracle(
        config,
        copy.deepcopy(start),
        torch.Generator(),
        eos_ids=(1,),
        head=head,
        critic=copy.deepcopy(start) if config.value_head == "critic" else None,
        reference=tiny(dtype).double() if name == "lora" else copy.deepcopy(start),
        retain=RETAIN,
    )
    return trainer, oracle, reward


def two_steps(name, dtype):
    """The numbers of the library and of the oracle for the same two steps: pairs of flat tensors, by name."""
    trainer, oracle, reward = build(name, dtype)
    pairs = {}
    for step in range(2):
        rollout = trainer.rollout()
        given = Given(
            [s.prompt_ids for s in rollout.samples],
            [s.ids for s in rollout.samples],
            rollout.generation.is_ended.tolist(),
            reward(rollout.samples),
            [row[: len(s.ids)] for row, s in zip(rollout.generation.logprobs.tolist(), rollout.samples, strict=True)],
        )
        expected = oracle.rollout(given)
        oracle.generator.set_state(trainer.generator.get_state())
        mask = rollout.generation.mask
        for field in ("old_logprobs", "old_values", "kl", "rewards", "advantages", "returns"):
            flat = torch.tensor([x for row in getattr(expected, field) for x in row], dtype=torch.float64)
            pairs[f"{step} {field}"] = getattr(rollout, field)[mask].double(), flat
        wanted = oracle.summary(given, expected) | oracle.update(given, expected)
        found = rollout.metrics | trainer.update(rollout)
        assert found.pop("rollout/logprob_gap") <= (1e-12 if dtype == torch.float64 else 1e-5)
        is_off_policy = trainer.config.importance != "off"
        assert (found.pop("rollout/sampler_gap", 0.0) > 0.01) == is_off_policy  # else rounding: sampling is float32
        if trainer.policy.is_sampler_exact:  # then nobody compares
            wanted = {m: x for m, x in wanted.items() if not m.startswith("sampler/")}
        assert {m for m in found if not m.startswith(("time/", "generate/"))} == wanted.keys()
        for metric in wanted:
            pairs[f"{step} {metric}"] = scalar(found[metric]), scalar(wanted[metric])
        pairs[f"{step} kl_coef"] = scalar(trainer.kl.coef), scalar(oracle.kl_coef)
        trained = trainer.policy.actor.trained_parameters()
        assert trained.keys() == oracle.parameters().keys()
        for parameter, weights in oracle.parameters().items():
            pairs[f"{step} {parameter}"] = trained[parameter].detach().double().clone(), weights.detach().clone()
    for parameter, (_, first, second) in oracle.optimizer.moments.items():
        state = trainer.learner.optimizer.state_tensors()
        for moment, numbers in (("exp_avg", first), ("exp_avg_sq", second)):
            flat = state[f"{parameter}/{moment}"].flatten().double()
            pairs[f"{parameter}/{moment}"] = flat, torch.tensor(numbers, dtype=torch.float64)
    return pairs


def scalar(number):
    return torch.tensor(float(number), dtype=torch.float64)


def assert_agreement(pairs, tolerance):
    for quantity, (found, expected) in pairs.items():
        error = float((found - expected).abs().max())
        # The sampler's entropy and shares of tokens are float32 whatever the model is.
        bound = max(tolerance, 1e-6) if quantity.endswith(("response/entropy", "clip_fraction")) else tolerance
        if quantity.endswith("clip_fraction") and tolerance >= 1e-5:
            bound = 0.04  # a token whose advantage is 0 but for rounding counts by its sign: one in 28, in float32
        assert error <= bound * max(1.0, float(expected.abs().max())), (quantity, error)


@pytest.fixture(scope="module")
def base():
    return two_steps("base", torch.float64)


@pytest.mark.parametrize("name", list(CASES))
def test_the_library_agrees_with_the_oracle_in_float64(name, base):
    pairs = two_steps(name, torch.float64)
    assert_agreement(pairs, 1e-9)
    moved = any(
        key not in base or a.shape != base[key][0].shape or (a - base[key][0]).abs().max() > 1e-6
        for key, (a, _) in pairs.items()
    )
    assert moved == (name not in UNMOVED)


@pytest.mark.parametrize("name", list(CASES))
def test_the_library_agrees_with_the_oracle_in_float32(name):
    assert_agreement(two_steps(name, torch.float32), LOOSER_IN_FLOAT32.get(name, 1e-5))


def test_every_option_is_compared_with_the_oracle_or_named_as_no_mathematics():
    covered = {field for changes in CASES.values() for field in changes} | {
        field.name for field in dataclasses.fields(Config) if getattr(BASE, field.name) != field.default
    }
    fields = {field.name for field in dataclasses.fields(Config)}
    assert fields - covered - NOT_MATHEMATICS.keys() == set()
    assert NOT_MATHEMATICS.keys() <= fields
    assert covered & NOT_MATHEMATICS.keys() == set()
