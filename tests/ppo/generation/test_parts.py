"""The parts of the fast engine, each alone: packed layers, the cache, the plan for too little memory."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F

from ppo import Sampling, generate
from ppo.generation import admission as admission_module
from ppo.generation import cache as cache_module
from ppo.generation.attention import prefill
from ppo.generation.cache import KVCache
from ppo.generation.decoders import bind
from ppo.generation.linear import Linear, has_packed_operators, pays_to_pack
from ppo.generation.transformer import rotate_
from tests.fakes import tiny_gpt2, tiny_llama

ACTIVATIONS = {
    "none": lambda x: x,
    "gelu": lambda x: x / 2 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: x * (x > 0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "shape"), [(torch.float32, (8, 12)), (torch.float32, (640, 200)), (torch.bfloat16, (48, 40))]
)
def test_linear_equals_its_formula(activation, has_bias: bool, dtype, shape):
    g = torch.Generator().manual_seed(0)
    weight = (torch.randn(shape, generator=g) / shape[1] ** 0.5).to(dtype)
    bias = torch.randn(shape[0], generator=g).to(dtype) if has_bias else None
    layer = Linear(weight, bias, activation, rows=8)
    for rows in (1, 3, 8, 40):
        x = torch.randn(rows, shape[1], generator=g).to(dtype)
        expected = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
        actual = layer(x)
        assert actual.dtype == dtype
        torch.testing.assert_close(
            actual.double(), ACTIVATIONS[activation](expected), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
        transposed = Linear(weight.T.contiguous().T, bias, activation, rows=8)
        torch.testing.assert_close(transposed(x), actual, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.skipif(not has_packed_operators(), reason="this torch has no packed operators")
def test_which_layers_are_packed():
    large, small = torch.zeros(640, 200), torch.zeros(40, 20)
    assert pays_to_pack(large, 8)
    assert not pays_to_pack(large, 1)
    assert not pays_to_pack(small, 64)
    assert not pays_to_pack(large.double(), 64)
    assert not pays_to_pack(large.to("meta"), 64)


def test_without_torch_s_private_operators_layers_are_plain(monkeypatch):
    monkeypatch.setattr("ppo.generation.linear.has_packed_operators", lambda: False)
    model = tiny_llama().to(torch.bfloat16).eval()
    assert not bind(model, rows=4, length=20).output.is_packed


def test_rotation_turns_pairs_as_complex_numbers_do():
    x = torch.randn(5, 3, 8, dtype=torch.float64)
    angle = torch.randn(5, 4, dtype=torch.float64)
    expected = x.clone()
    for n in range(5):
        for pair in range(4):
            a, b = x[n, :, 2 * pair], x[n, :, 2 * pair + 1]
            cosine, sine = angle[n, pair].cos(), angle[n, pair].sin()
            expected[n, :, 2 * pair], expected[n, :, 2 * pair + 1] = a * cosine - b * sine, a * sine + b * cosine
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        turned = x.to(dtype, copy=True)
        complex_type = torch.complex128 if dtype == torch.float64 else torch.complex64
        rotate_(turned, torch.polar(torch.ones_like(angle), angle).to(complex_type).unsqueeze(1))
        torch.testing.assert_close(turned.double(), expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_cache_keeps_what_was_written_while_it_widens_and_moves():
    """A dictionary is the oracle: after random writes, inserts, moves and widenings, every real column is read back."""
    network = bind(tiny_llama().eval(), rows=6, length=60)
    layers, heads, width = len(network.blocks), network.num_kv_heads, network.head_width
    cache = KVCache(network, rows=6, capacity=60)
    cache.reserve(8, 0)
    assert cache.columns == 32
    random = torch.Generator().manual_seed(0)
    expected: list[list[torch.Tensor]] = [[] for _ in range(6)]  # row -> tokens [layers, 2, heads, width]

    def check() -> None:
        for layer in range(layers):
            turned, values = cache.read(layer, 6)
            keys = turned.transpose(1, 2)
            assert keys.is_contiguous() or cache.columns == 60 or keys.stride(0) == cache.columns * width
            for row, tokens in enumerate(expected):
                for column, token in enumerate(tokens):
                    for head in range(heads):
                        assert torch.equal(keys[row * heads + head, column], token[layer, 0, head])
                        assert torch.equal(values[row * heads + head, column], token[layer, 1, head])
            assert torch.isfinite(keys).all()
            assert torch.isfinite(values).all()

    block = torch.randn(layers, 2, 6, heads, 7, width, generator=random)
    for first, indices, length in ((0, [1, 2, 3], 7), (3, [5, 0, 5], 6)):  # rows in a row, and picked ones
        cache.insert(first, block, indices, length)
        for row, index in enumerate(indices, first):
            real = length - index  # columns that are copied beyond a sequence's end do not count
            expected[row] = [block[:, :, index, :, column] for column in range(real)]
    check()
    for step in range(30):
        positions = torch.tensor([len(tokens) for tokens in expected])
        cache.reserve(int(positions.max()) + 1, 6)
        new = torch.randn(layers, 6, 2, heads, width, generator=random)
        for layer in range(layers):
            cache.write(layer, positions, new[layer], None)
        for row in range(6):
            expected[row].append(new[:, row])
        if step == 10:
            cache.move(5, 1, len(expected[5]))
            expected[1] = list(expected[5])
    check()
    assert cache.columns > 32
    cache.write(0, torch.full((6,), 40), new[0], 40)
    assert torch.equal(cache.read(0, 6)[0][..., 40], new[0, :, 0].flatten(0, 1))


def test_too_little_memory_means_fewer_slots_not_a_crash(monkeypatch):
    model, prompts = tiny_gpt2().eval(), [[2, 3], [4], [5, 6, 7], [8]]
    sampling = Sampling(response_length=6, eos_ids=())
    expected = generate(model, prompts, sampling)
    monkeypatch.setattr(cache_module, "free_memory", lambda device: 10_000)
    with pytest.warns(RuntimeWarning, match="sampling 2 sequences at a time"):
        actual = generate(model, prompts, sampling)
    assert torch.equal(actual.tokens, expected.tokens)


def test_more_requests_than_slots_share_prefills_and_keep_slots_busy():
    model = tiny_gpt2().eval()
    generation = generate(
        model, [[2, 3, 4]] * 3 + [[5, 6]], Sampling(response_length=10, num_samples=16, eos_ids=()), slots=8
    )
    metrics = generation.metrics
    assert metrics["generate/decode_steps"] == 8 * 9  # 64 requests in 8 slots; the first token comes from prefill
    assert metrics["generate/padding_waste"] == pytest.approx(1 - (64 * 9 + 5) / (64 * 9 + 6))  # 2 prompts, not 64


def test_a_block_of_prompts_is_freed_before_the_next_one_is_computed(monkeypatch):
    blocks: list[weakref.ref[torch.Tensor]] = []

    def watched(*arguments):
        assert not [block for block in blocks if block() is not None]
        block, hidden = prefill(*arguments)
        blocks.append(weakref.ref(block))
        return block, hidden

    monkeypatch.setattr(admission_module, "prefill", watched)
    prompts = [[2 + index % 20, 3 + index // 20] for index in range(30)]
    generate(tiny_gpt2().eval(), prompts, Sampling(response_length=6, eos_ids=(3, 4, 5)), slots=4)
    assert len(blocks) > 5


def test_without_packing_f_linear_is_used():
    weight, bias, x = torch.randn(4, 3), torch.randn(4), torch.randn(2, 3)
    assert torch.equal(Linear(weight, bias, rows=1)(x), F.linear(x, weight, bias))
