"""Responses of several turns, against the plain way: every turn computed anew from all that was said before."""

import numpy as np
import pytest
import torch

import ppo
from ppo import Sampling, Turns, generate
from ppo.generation.sampling import uniforms
from tests.fakes import VOCAB, tiny_bloom, tiny_gpt2, tiny_llama, tiny_opt

PROMPTS = [[2, 3, 4], [5, 6], [7, 8, 9, 10, 11], [12]]
SHORT = Sampling(response_length=4)
ENDS = (1, 4, 9)  # 1 is EOS


def answer_to(ids):
    """Twice the last token of a turn, modulo the vocabulary, as often as the turn has tokens; the end after a 2."""
    return None if 2 in ids else [(2 * ids[-1]) % VOCAB] * len(ids)


def slowly(model, prompt, request, *, response_length, turn_length, temperature=1.0, seed=0):
    """One response in plain loops: ids, which of them are actions, their log-probs, and whether the end was reached."""
    numbers = uniforms(seed, [request], response_length)[0]
    ids, actions, logprobs, turn = [], [], [], []
    while True:
        logits = model(torch.tensor([prompt + ids])).logits[0, -1].double() / temperature
        chances = logits.softmax(-1)
        token = int((chances.cumsum(-1) <= float(numbers[len(ids)])).sum())
        ids.append(token)
        actions.append(True)
        logprobs.append(float(chances[token].log()))
        turn.append(token)
        is_full = len(ids) == response_length
        if token in ENDS or len(turn) == turn_length or is_full:
            answer = answer_to(turn)
            if answer is None:
                return ids, actions, logprobs, True
            if len(ids) + len(answer) >= response_length:
                return ids, actions, logprobs, False
            ids += answer
            actions += [False] * len(answer)
            logprobs += [0.0] * len(answer)
            turn = []


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_opt, tiny_bloom], ids=lambda f: f.__name__)
@pytest.mark.parametrize("slots", [1, 3, 64])
@pytest.mark.parametrize("turn_length", [None, 3])
@torch.no_grad()
def test_turns_are_those_of_the_plain_way(make, slots, turn_length):
    """For fast decoders and for a model's own forward (BLOOM has no decoder), however many rows share a step."""
    model = make().eval()
    turns = Turns(lambda request, ids: answer_to(ids), end_ids=ENDS, turn_length=turn_length)
    sampling = Sampling(response_length=14, num_samples=4)
    found = generate(model, PROMPTS, sampling, slots=slots, turns=turns, value_fn=lambda hidden: hidden[:, 0])
    assert bool(found.metrics["generate/is_fast"]) == (make is not tiny_bloom)
    assert any(not row.all() for row in (found.action_mask | ~found.mask))  # there were answers
    assert 0 < found.is_ended.sum() < len(found)
    for request, length in enumerate(found.lengths.tolist()):
        ids, actions, logprobs, is_ended = slowly(
            model, PROMPTS[request // 4], request, response_length=14, turn_length=turn_length
        )
        assert found.tokens[request, :length].tolist() == ids
        assert found.action_mask[request, :length].tolist() == actions
        assert bool(found.is_ended[request]) == is_ended
        assert found.logprobs[request, :length].tolist() == pytest.approx(logprobs, abs=1e-4)
        assert not found.logprobs[request][~found.action_mask[request]].any()
        assert not found.entropy[request][~found.action_mask[request]].any()
        assert not found.values[request][~found.action_mask[request]].any()
        assert found.values[request][found.action_mask[request]].all()


def test_the_cache_is_kept_between_turns():
    """No token passes the network twice: as many positions as tokens, less the last one of each row."""
    widths = []
    model = tiny_gpt2().eval()
    model.transformer.wte.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    turns = Turns(lambda request, ids: answer_to(ids), end_ids=ENDS, turn_length=3)
    found = generate(model, PROMPTS, Sampling(response_length=14), turns=turns, engine="hf", slots=64)
    steps = int(found.lengths.max())
    assert widths[-steps:] == [5] + [1] * (steps - 1)  # the prompts, then a token at a time; before that, a probe


def test_each_turn_is_handed_over_once():
    heard = []

    def reply(request, ids):
        heard.append((request, ids))
        return [20, 21] if len([r for r, _ in heard if r == request]) < 3 else None

    found = generate(tiny_gpt2(eos=None), PROMPTS, Sampling(response_length=30), turns=Turns(reply, turn_length=2))
    assert found.tokens.shape == (4, 10)
    assert found.is_ended.all()
    for request in range(4):
        ids = found.tokens[request].tolist()
        assert [turn for r, turn in heard if r == request] == [ids[0:2], ids[4:6], ids[8:10]]
        assert ids[2:4] == ids[6:8] == [20, 21]


def test_an_answer_without_room_is_not_written():
    """Room for one token more is enough; without it the response ends with the policy's own turn."""
    for size, length in ((3, 6), (4, 2), (5, 2)):
        turns = Turns(lambda request, ids, size=size: [20] * size, turn_length=2)
        found = generate(tiny_gpt2(eos=None), PROMPTS, Sampling(response_length=6), turns=turns)
        assert found.lengths.tolist() == [length] * 4
        assert not found.is_ended.any()
        assert found.action_mask[:, -1].all()


def test_an_empty_answer_begins_the_next_turn():
    heard = []

    def reply(request, ids):
        heard.append(ids)
        return []

    found = generate(tiny_gpt2(eos=None), [[2]], Sampling(response_length=6), turns=Turns(reply, turn_length=2))
    ids = found.tokens[0].tolist()
    assert heard == [ids[0:2], ids[2:4], ids[4:6]]
    assert found.action_mask.all()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("text", "the reply to response 0 is 'text'"),
        ([1.0], "wanted token ids"),
        ([True], "wanted token ids"),
        ([VOCAB], f"holds {VOCAB}, outside the model's vocabulary of {VOCAB}"),
        ([-1], "holds -1"),
    ],
)
def test_a_wrong_answer_is_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        generate(
            tiny_gpt2(), [[2]], Sampling(response_length=9), turns=Turns(lambda request, ids: answer, turn_length=1)
        )


def test_answers_of_numpy_numbers_are_answers():
    plain, other = (
        generate(
            tiny_gpt2(), [[2]], Sampling(response_length=9),
            turns=Turns(lambda request, ids, kind=kind: kind([5, 6]), turn_length=2, end_ids=(np.int64(3),)),
        )
        for kind in (list, lambda ids: list(np.array(ids)))
    )  # fmt: skip
    assert not plain.action_mask.all()
    assert torch.equal(plain.tokens, other.tokens)


def test_wrong_turns_are_refused():
    with pytest.raises(ValueError, match=r"Turns.end_ids=6 must be a list of token ids, such as \[6\]"):
        Turns(lambda request, ids: None, end_ids=6)
    with pytest.raises(ValueError, match="turn_length=0 must be at least 1"):
        Turns(lambda request, ids: None, turn_length=0)
    with pytest.raises(ValueError, match="end_ids holds 99, outside the model's vocabulary of 23"):
        generate(tiny_gpt2(), [[2]], SHORT, turns=Turns(lambda request, ids: None, end_ids=(99,)))
    with pytest.raises(ValueError, match="drafts guess a whole response"):
        generate(tiny_gpt2(), [[2]], SHORT, turns=Turns(lambda request, ids: None), drafts=[[3]])


@pytest.mark.slow
def test_compiled_turns_are_the_same():
    turns = Turns(lambda request, ids: answer_to(ids), end_ids=ENDS, turn_length=3)
    model, sampling = tiny_gpt2().eval(), Sampling(response_length=14)
    plain = generate(model, PROMPTS, sampling, turns=turns)
    compiled = ppo.generate(model, PROMPTS, sampling, turns=turns, compiled=True)
    assert torch.equal(plain.tokens, compiled.tokens)
    assert torch.equal(plain.action_mask, compiled.action_mask)
