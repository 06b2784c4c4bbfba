"""What is measured of a token, beside a plain forward pass, all texts of a tiny vocabulary, and samples."""

import itertools
import math

import numpy as np
import pytest
import torch

import ppo
from eval.scan.measure import metered, token_columns
from ppo.config import Sampling
from ppo.lm.distribution import next_token_logprobs
from tests.fakes import tiny_gpt2, tiny_llama

BOS = 0


def columns_of(model, passes, firsts, **options):
    with metered(model, bos=options.pop("bos", BOS), length=40, **options) as meter:
        found = dict(meter.columns(passes, firsts))
    return [found[i] for i in range(len(passes))]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("bos", [BOS, None])
def test_columns_are_those_of_a_plain_forward_pass(make, bos):
    model, random = make(), np.random.default_rng(0)
    passes = [random.integers(2, 23, size).tolist() for size in (30, 7, 18, 7, 1 if bos is not None else 2)]
    firsts = [5, int(bos is None), 9, 3, int(bos is None)]
    found = columns_of(model, passes, firsts, bos=bos, batch_tokens=40, top_k=4)
    for ids, first, columns in zip(passes, firsts, found, strict=True):
        front = [] if bos is None else [bos]
        with torch.no_grad():
            logits = model.eval()(torch.tensor([front + ids])).logits[0].float()
        logits = logits[len(front) + first - 1 : -1]
        targets = torch.tensor(ids[first:])
        top = next_token_logprobs(logits, Sampling(response_length=1, top_k=4))
        plain = torch.log_softmax(logits, -1)
        assert len(columns) == len(targets)
        assert columns.right.tolist() == (logits.argmax(-1) == targets).tolist()
        assert columns.ends.tolist() == ((logits.argmax(-1) == 1) & (targets != 1)).tolist()
        np.testing.assert_allclose(columns.logprobs, plain.gather(1, targets[:, None])[:, 0], atol=1e-4)
        np.testing.assert_allclose(columns.top_k, top.gather(1, targets[:, None])[:, 0], atol=1e-4)


@pytest.mark.parametrize("top_k", [0, 2])
def test_p_z_is_that_of_all_texts_there_are(top_k):
    """Every suffix of three tokens over five: the probabilities are those of a chain, and sum to one."""
    model, prefix = tiny_gpt2(vocab=5, eos=None), [2, 4, 1]
    suffixes = list(itertools.product(range(5), repeat=3))
    found = columns_of(model, [prefix + list(s) for s in suffixes], [3] * len(suffixes), top_k=top_k)
    chances = [math.exp(float(c.top_k.astype(np.float64).sum())) for c in found]
    assert sum(chances) == pytest.approx(1, abs=1e-5)
    for suffix, chance in zip(suffixes, chances, strict=True):
        expected, ids = 1.0, [BOS, *prefix]
        for token in suffix:
            with torch.no_grad():
                logits = model.eval()(torch.tensor([ids])).logits[0, -1].double()
            if top_k:
                logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
            expected *= float(torch.softmax(logits, -1)[token])
            ids.append(token)
        assert chance == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_p_z_is_the_share_of_a_hundred_thousand_samples():
    model, prefix, count = tiny_gpt2(vocab=5, eos=None), [BOS, 2, 4, 1], 100_000
    sampling = Sampling(response_length=3, top_k=3, num_samples=count, eos_ids=())
    drawn = ppo.generate(model, [prefix], sampling, seed=1, slots=4096).tokens.tolist()
    suffixes = sorted({tuple(row) for row in drawn})
    found = columns_of(model, [prefix[1:] + list(s) for s in suffixes], [3] * len(suffixes), top_k=3)
    for suffix, columns in zip(suffixes, found, strict=True):
        chance = math.exp(float(columns.top_k.sum()))
        share = sum(tuple(row) == suffix for row in drawn) / count
        assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / count) + 1e-6


def test_a_recited_suffix_is_what_greedy_decoding_writes():
    model, prefix = tiny_gpt2(eos=None), [3, 9, 4]
    sampling = Sampling(response_length=8, temperature=0.0, eos_ids=())
    written = ppo.generate(model, [[BOS, *prefix]], sampling).tokens[0].tolist()
    changed = [*written[:5], (written[5] + 1) % 23, *written[6:]]
    one, other = columns_of(model, [prefix + written, prefix + changed], [3, 3])
    assert one.right.all()
    assert other.right[:6].tolist() == [True] * 5 + [False]


def test_tokens_that_tie_with_the_last_of_the_top_k_stay():
    logits = torch.tensor([[3.0, 2.0, 2.0, 2.0, 0.0], [3.0, 2.5, 2.0, 1.0, 0.0]])
    tokens = torch.tensor([3, 2])
    found = token_columns(logits, tokens, ends=torch.tensor([0]), top_k=2)
    expected = next_token_logprobs(logits, Sampling(response_length=1, top_k=2)).gather(1, tokens[:, None])[:, 0]
    assert found[3].tolist() == pytest.approx(expected.tolist())
    assert found[3][1] == -torch.inf
    assert found[1].tolist() == [True, True]  # the first choice is the end


def test_dropout_is_off_and_a_pass_that_is_too_long_is_an_error():
    model = tiny_gpt2().train()
    one, two = (columns_of(model, [[3, 4, 5, 6]], [2])[0].logprobs.tolist() for _ in range(2))
    assert one == two
    assert model.training
    with (
        pytest.raises(ValueError, match="a pass of 49 tokens exceeds the model's context of 48"),
        metered(model, bos=BOS, length=48),
    ):
        pass
    with metered(model, bos=None, length=8) as meter, pytest.raises(ValueError, match="something before it"):
        list(meter.columns([[3, 4]], [0]))
