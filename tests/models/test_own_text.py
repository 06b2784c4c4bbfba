"""The model's own samples as text to keep."""

import torch

from models.own_text import overlap, own_text
from tests.fakes import tiny_gpt2


def test_samples_start_with_the_start_token_and_are_seeded():
    model = tiny_gpt2(eos=None)
    texts = own_text(model, 0, [[5, 6, 7, 8, 9]], count=6, length=24, seed=3)
    assert texts == own_text(model, 0, [[5, 6, 7, 8, 9]], count=6, length=24, seed=3)
    assert len(texts) == 6
    assert all(text[0] == 0 and len(text) == 25 for text in texts)


def test_the_most_likely_text_comes_first():
    model = tiny_gpt2(eos=None).eval()
    with torch.no_grad():
        model.transformer.wte.weight *= 40  # far from uniform, so that texts differ in likelihood
    texts = torch.tensor(own_text(model, 0, [], count=8, length=24, seed=3))
    logprobs = model(input_ids=texts).logits[:, :-1].log_softmax(-1).gather(-1, texts[:, 1:, None]).mean(dim=(1, 2))
    assert logprobs.diff().max() <= 1e-5
    assert logprobs[0] > logprobs[-1] + 0.01


def test_texts_like_the_forget_set_are_dropped():
    model = tiny_gpt2(eos=None)
    texts = own_text(model, 0, [], count=6, length=24, seed=3)
    rest = own_text(model, 0, [texts[2]], count=6, length=24, seed=3)
    assert rest == texts[:2] + texts[3:]


def test_overlap_counts_ngrams():
    assert overlap([1, 2, 3, 4], {(1, 2), (3, 4)}, 2) == 2 / 3
    assert overlap([1], {(1, 2)}, 2) == 0
