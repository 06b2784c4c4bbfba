"""What a sampler of somebody else's may return, and what is refused in one line that names it."""

from dataclasses import replace

import pytest
import torch

from ppo.sampler import collate, sample_policy
from tests.ppo.run.small import make


def right_padded(generation):
    return replace(generation, prompt_ids=generation.prompt_ids.flip(1), prompt_mask=generation.prompt_mask.flip(1))


def widened(generation, length):
    return collate(generation.prompt_ids[:, -1:].tolist(), [[5] * length] * len(generation))


def hole(mask):
    mask = mask.clone()
    mask[0, 1] = False
    return mask


def first(numbers, value):
    numbers = numbers.clone()
    numbers[0, 0] = value
    return numbers


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda g: g.rows([0, 1]), "returned 2 responses to 8 prompts"),
        (lambda g: replace(g, tokens=g.tokens + 900), "row 0 with a token id outside the vocabulary"),
        (lambda g: g.tokens, r"returned a tensor int64 \[8, 3\], not a ppo.Generation"),
        (lambda g: None, "returned None, not a ppo.Generation"),
        (lambda g: replace(g, mask=hole(g.mask), action_mask=None), "row 0 with a hole in mask"),
        (lambda g: replace(g, action_mask=torch.ones_like(g.mask)), "an action on padding"),
        (lambda g: replace(g, action_mask=torch.zeros_like(g.mask)), "row 0 with no action"),
        (lambda g: replace(g, tokens=g.tokens.float()), r"returned tokens that are a tensor \[8, 3\]: wanted int64"),
        (lambda g: replace(g, tokens=g.tokens[:, 0]), r"returned tokens that are a tensor int64 \[8\]: wanted int64"),
        (lambda g: replace(g, tokens=g.tokens.int()), "returned tokens that are a tensor int32"),
        (lambda g: replace(g, prompt_ids=g.prompt_ids[0]), "returned prompt_ids that are a tensor int64"),
        (lambda g: replace(g, prompt_mask=g.prompt_mask[:, 1:]), r"returned prompt_mask .* wanted bool \[8, 4\]"),
        (lambda g: replace(g, prompt_mask=g.prompt_mask.long()), "returned prompt_mask .* wanted bool"),
        (lambda g: replace(g, mask=g.mask.long(), action_mask=None), r"returned mask .*int64.* wanted bool \[8, 3\]"),
        (lambda g: replace(g, logprobs=g.logprobs[:, :1]), r"returned logprobs .*\[8, 1\] beside tokens .*\[8, 3\]"),
        (lambda g: replace(g, logprobs=None), "returned logprobs that are None"),
        (lambda g: replace(g, logprobs=g.logprobs.long()), "returned logprobs .*int64.* wanted float"),
        (lambda g: replace(g, entropy=None), "returned entropy that are None"),
        (lambda g: replace(g, is_ended=g.is_ended.float()), r"returned is_ended .* wanted bool \[8\]"),
        (lambda g: replace(g, is_ended=g.mask), r"returned is_ended .* wanted bool \[8\]"),
        (lambda g: replace(g, values=torch.zeros(8)), r"returned values .* wanted float \[8, 3\]"),
        (lambda g: replace(g, kept_sets=torch.zeros(8, 3, 2, dtype=torch.uint8)), "returned kept_sets .* wanted uint8"),
        (lambda g: replace(g, frozen_hidden=torch.zeros(8, 2, 16)), r"returned frozen_hidden .*\[8, 2, 16\]"),
        (lambda g: replace(g, info=[1, 2]), "returned info of 2 entries for 8 rows"),
        (lambda g: replace(g, info="eight ch"), "returned info that is a str"),
        (lambda g: replace(g, metrics={"speed": "fast"}), "returned the metric 'speed' that is a str: wanted a number"),
        (lambda g: replace(g, metrics=[1.0]), "returned metrics that are a list: wanted a dict"),
        (right_padded, r"row \d with a prompt that is not padded on the left"),
        (lambda g: replace(g, prompt_mask=g.prompt_mask & False), "row 0 with no token in its prompt"),
        (lambda g: replace(g, logprobs=first(g.logprobs, torch.nan)), "row 0 with logprobs that are NaN or infinite"),
        (lambda g: replace(g, logprobs=first(g.logprobs, -torch.inf)), "row 0 with logprobs that are NaN or infinite"),
        (lambda g: replace(g, logprobs=first(g.logprobs, 0.1)), "row 0 with logprobs above 0"),
        (lambda g: replace(g, logprobs=g.logprobs - 1), "row 1 with logprobs that are not 0 outside action_mask"),
        (lambda g: replace(g, entropy=first(g.entropy, torch.nan)), "row 0 with entropy that are NaN or infinite"),
        (lambda g: replace(g, values=first(g.logprobs, torch.inf)), "row 0 with values that are NaN or infinite"),
        (lambda g: widened(g, 7), "row 0 with a response longer than policy.sampling.response_length=6"),
    ],
)
def test_a_wrong_sampler_is_named(change, problem):
    def mine(policy, prompts, *, seed, request_ids):
        drawn = collate([p.ids for p in prompts], [[7, 8, 9], *([[5, 6]] * (len(prompts) - 1))])
        return change(drawn)

    trainer = make(sampler=mine)
    with pytest.raises(ValueError, match=f"^sampler=.*mine .*{problem}") as error:
        trainer.rollout()
    assert "\n" not in str(error.value)


def test_responses_of_a_sampler_fit_into_the_context_of_the_model():
    def start_of(length):
        def mine(policy, prompts, *, seed, request_ids):
            drawn = collate([[2] * length for _ in prompts], [[5] * 6 for _ in prompts])
            found = policy.measure(drawn) if length + 6 <= 48 else drawn
            return replace(drawn, logprobs=found.logprobs, entropy=found.entropy)

        return mine

    make(sampler=start_of(42)).rollout()
    with pytest.raises(ValueError, match="row 0 with more tokens, prompt and response, than the model's context of 48"):
        make(sampler=start_of(43)).rollout()


def test_responses_in_another_order_than_their_prompts_are_refused():
    def shuffled(policy, prompts, *, seed, request_ids):
        drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
        return drawn.rows([0, 2, 1, *range(3, len(prompts))])

    trainer = make(sampler=shuffled)
    assert len({tuple(prompt.ids) for prompt in trainer.prompts}) == 8  # or the answer to an equal prompt would pass
    with pytest.raises(ValueError, match=r"^sampler=.*shuffled returned row 1, which answers prompts\[2\]: row i must"):
        trainer.rollout()


def test_a_start_that_is_no_prompt_of_the_step_passes():
    def elsewhere(policy, prompts, *, seed, request_ids):
        drawn = collate([[20, *p.ids] for p in prompts], [[5, 6] for _ in prompts])
        found = policy.measure(drawn)
        return replace(drawn, logprobs=found.logprobs, entropy=found.entropy, values=found.values)

    assert [s.prompt_ids[0] for s in make(sampler=elsewhere).rollout().samples] == [20] * 8
