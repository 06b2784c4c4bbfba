"""How often the host waits for the device, and copies to it: counted on the pretend device, and held."""

import warnings

import pytest

from ppo import Sampling, Turns, generate
from ppo.generation.speculative import Drafts
from tests.accelerator.device import DEVICE, counted
from tests.accelerator.runs import cases, trainer
from tests.fakes import tiny_llama
from tests.ppo.generation.test_decoders import FAMILIES
from tests.ppo.generation.test_models import ARCHITECTURES, PROMPTS, build, responses
from tests.ppo.generation.test_turns import ENDS, answer_to

TRANSFORMERS = ("lm/backbone.py", "hf/model.py")  # the lines of these files that call a model's forward
TURNS = Turns(lambda request, ids: answer_to(ids), end_ids=ENDS, turn_length=3)


def model_of(name):
    return build((FAMILIES.get(name) or ARCHITECTURES[name])()).to(DEVICE)


def own(counted_places):
    """All but what transformers does in a model's forward: Llama's reads twice whether a batch has padding."""
    return sum(n for place, n in counted_places.items() if not any(name in place for name in TRANSFORMERS))


def sampled(model, sampling, **options):
    """The second of two equal calls: the first one also tries the model out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's own forward
        generate(model, PROMPTS, sampling, seed=5, **options)
        with counted() as counts:
            generation = generate(model, PROMPTS, sampling, seed=5, **options)
    return generation, counts


KNOBS = [{}, {"temperature": 0.0}, {"top_p": 0.8, "top_k": 9}]
BESIDE = 5  # a call: 3 in the proof of the decoder, 2 of them transformers' own; 2 at the end


@pytest.mark.parametrize("name", ["llama", "gpt-neo", "bloom", "gptj"])
@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_a_decoding_step_waits_once_and_copies_nothing_to_the_device(name, knobs):
    """GPT-Neo has a window, and prompts of different lengths. BLOOM and GPT-J are called by their own forward."""
    short, long = (
        sampled(model_of(name), Sampling(response_length=length, num_samples=2, eos_ids=(), **knobs))[1]
        for length in (10, 18)
    )
    assert own(long.waits) - own(short.waits) == 8, long.waits
    assert own(long.uploads) == own(short.uploads), long.uploads
    assert own(short.waits) <= 10 + BESIDE


@pytest.mark.parametrize("name", ["llama", "gpt-neo", "opt"])
def test_ended_rows_and_new_ones_wait_no_more(name):
    """Four blocks of prompts share three rows. The first tokens of a block wait once."""
    sampling = Sampling(response_length=16, num_samples=2, eos_ids=(4, 9, 12))
    generation, counts = sampled(model_of(name), sampling, slots=3)
    assert len(set(generation.lengths.tolist())) > 1
    assert counts.num_waits <= generation.metrics["generate/decode_steps"] + len(PROMPTS) + BESIDE, counts.waits


@pytest.mark.parametrize("name", ["bloom", "olmo2"])
def test_ended_rows_and_new_ones_of_a_models_own_forward(name):
    sampling = Sampling(response_length=16, num_samples=2, eos_ids=(4, 9, 12))
    generation, counts = sampled(model_of(name), sampling, slots=3)
    starts = 2 * len(PROMPTS)  # at most: each request alone
    assert own(counts.waits) <= generation.metrics["generate/decode_steps"] + starts + BESIDE, counts.waits


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_one_wait_a_step_of_responses_of_several_turns(name):
    """The tokens of an answer are copied to the device, once an answer."""
    generation, counts = sampled(model_of(name), Sampling(response_length=16, num_samples=2), turns=TURNS)
    answers = int((generation.action_mask.int().diff(dim=1) < 0).sum())
    assert answers > 5
    assert counts.num_waits <= generation.metrics["generate/decode_steps"] + 1 + BESIDE, counts.waits
    assert own(counts.uploads) <= 32 + answers, counts.uploads


def test_one_wait_for_32_positions_of_drafts(monkeypatch):
    """Drafts are checked 32 positions at a time, before a row decodes."""
    monkeypatch.setattr(Drafts, "pays", True)
    sampling = Sampling(response_length=16, eos_ids=())
    plain, _ = sampled(model_of("llama"), sampling)
    generation, counts = sampled(model_of("llama"), sampling, drafts=responses(plain))
    assert generation.metrics["generate/decode_steps"] == 0
    checks = 15 / (32 // len(PROMPTS))
    assert counts.num_waits <= checks + 1 + BESIDE, counts.waits


def test_a_nucleus_of_a_large_vocabulary_waits_once_more():
    """It reads whether 128 tokens were enough for every row."""
    config = FAMILIES["llama"]()
    config.vocab_size = 5000
    generation, counts = sampled(build(config).to(DEVICE), Sampling(response_length=8, top_p=0.8, eos_ids=()))
    assert generation.metrics["generate/decode_steps"] == 7
    assert 14 < counts.num_waits <= 2 * 8 + BESIDE, counts.waits


# ---------------------------------------------------------------------- the update

MINIBATCH = {
    "linear": ({}, 2),
    "critic, microbatches": ({"value_head": "critic", "microbatch": 1}, 2),
    "mlp": ({"value_head": "mlp", "detach_value_head": True}, 2),
    "grpo, microbatches": ({"advantage": "grpo", "samples_per_prompt": 2, "minibatch": 4, "microbatch": 2}, 2),
    "rloo, microbatches of tokens": (
        {"advantage": "rloo", "samples_per_prompt": 2, "minibatch": 4, "microbatch_tokens": 20}, 2,
    ),
    "kl in the loss": ({"kl_as": "loss", "kl_estimator": "k2"}, 2),
    "filters": ({"top_p": 0.9, "top_k": 9, "min_response_length": 2}, 2),
    "text to keep": ({"retain_coef": 1.0, "retain_sequences": 2, "retain_tokens": 8, "microbatch": 1}, 2),
    "autocast": ({"autocast": "bfloat16"}, 2),
    "moments in bfloat16": ({"moment_dtype": "bfloat16"}, 2),
    "gradient checkpointing": ({"gradient_checkpointing": True}, 2),
    "frozen blocks": ({"train_top_layers": 1}, 2),
    "importance": ({"importance": "token", "old_logprobs": "recompute"}, 2),
    "overlong": ({"mask_overlong": True, "prompts_per_step": 16, "minibatch": 16}, 2),
    "brakes": ({"max_mean_ratio": 9.0, "stop_kl_per_token": 9.0}, 2),
    "tensorflow's epsilon": ({"adam_eps_style": "tensorflow"}, 4),  # the step counts of both groups
    "good responses again": ({"positive_coef": 0.1, "positive_score": 3.0}, 3),  # how many tokens they have
}  # fmt: skip


AFTER = 6  # waits at the end of an update: the explained variance, the KL controller


def updated(changes, **arguments):
    """What an update of several epochs waits for and copies to the device, and how many minibatches it has."""
    config = {"epochs": 4, **changes}
    if changes.get("retain_coef"):
        arguments["retain"] = [[2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5]]
    run = trainer(tiny_llama(), DEVICE, config, **arguments)
    rollout = run.rollout()
    with counted() as counts:
        statistics = run.update(rollout)
    return counts, int(statistics["update/minibatches"])


QUICK = ("critic, microbatches", "grpo, microbatches", "filters", "moments in bfloat16", "tensorflow's epsilon")


@pytest.mark.parametrize("name", cases(MINIBATCH, *QUICK))
def test_waits_of_a_minibatch(name):
    """Two: all statistics at once, for the brakes; and the norm of the gradient. However many microbatches it has."""
    changes, expected = MINIBATCH[name]
    counts, minibatches = updated(changes)
    assert minibatches >= 4
    assert expected * minibatches <= own(counts.waits) <= expected * minibatches + AFTER, counts.waits


def test_copies_to_the_device_in_a_minibatch():
    """Which rows, for the minibatch and for each microbatch, twice each; and where a microbatch has its actions."""
    for changes, microbatches in (({}, 1), ({"microbatch": 1}, 2)):
        counts, minibatches = updated(changes)
        assert own(counts.uploads) == (2 + 3 * microbatches) * minibatches, counts.uploads


def test_a_loss_of_ones_own_waits_once_more_for_each_microbatch():
    """It is looked at before its gradient is taken: whether it is finite."""

    def loss(new, part, *, num_tokens, num_sequences):
        return -(new.logprobs * part.advantages).sum() / num_tokens, {"mean": part.advantages.sum() / num_tokens}

    counts, minibatches = updated({"microbatch": 1}, policy_loss=loss)
    assert (2 + 2) * minibatches <= own(counts.waits) <= (2 + 2) * minibatches + AFTER, counts.waits


@pytest.mark.parametrize("changes", [{}, {"value_head": "critic", "microbatch": 1}, {"top_p": 0.9}], ids=str)
def test_a_rollout_waits_for_its_steps_and_fifteen_times(changes):
    """The samples, the checks, the metrics, the layout of the rows: once each, not once for every number."""
    run = trainer(tiny_llama(), DEVICE, changes)
    run.update(run.rollout())
    with counted() as counts:
        rollout = run.rollout()
    assert own(counts.waits) <= rollout.metrics["generate/decode_steps"] + 15, counts.waits
