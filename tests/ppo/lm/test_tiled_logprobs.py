"""The tiled log-probs equal those of whole rows of logits in float64, forward and backward, and take less memory."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import ppo.lm.logprobs
import ppo.lm.tiled_logprobs
from ppo.actor_critic import ActorCritic
from ppo.config import Sampling
from ppo.lm.logprobs import is_plain_linear, token_logprobs
from ppo.lm.tiled_logprobs import OutputDistribution, output_logprobs
from tests.fakes import random_rollout, tiny_gpt2

N, D, V = 7, 4, 11


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(ppo.lm.tiled_logprobs, "_TILE_WIDTH", 4)


def draw(dtype=torch.float64, *, seed=0, has_bias=True):
    g = torch.Generator().manual_seed(seed)
    rows, weight = torch.randn(N, D, generator=g, dtype=dtype), torch.randn(V, D, generator=g, dtype=dtype)
    bias = torch.randn(V, generator=g, dtype=dtype) if has_bias else None
    return rows, weight, bias, torch.randint(V, (N,), generator=g)


def distribution(*, temperature=1.0, banned=(), is_banned=None, dtype=torch.float64, chunk_rows=3):
    is_banned = torch.zeros(N, dtype=torch.bool) if is_banned is None else is_banned
    return OutputDistribution(temperature, tuple(banned), is_banned, dtype, chunk_rows)


def naive(rows, weight, bias, tokens, dist):
    """The oracle: one row, one token at a time."""
    logprobs, entropies = [], []
    for n in range(len(tokens)):
        logits = []
        for v in range(weight.shape[0]):
            logit = (rows[n].double() * weight[v].double()).sum()
            logit = (logit + (bias[v] if bias is not None else 0)) / dist.temperature
            if v in dist.banned_ids and dist.is_banned[n]:
                continue
            logits.append((v, logit))
        total = torch.log(sum(logit.exp() for _, logit in logits))
        chances = [(logit - total).exp() for _, logit in logits]
        entropies.append(-sum(p * p.log() for p in chances))
        logprobs.append(dict(logits)[int(tokens[n])] - total)
    return torch.stack(logprobs), torch.stack(entropies)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_are_those_of_plain_loops(has_bias, temperature):
    rows, weight, bias, tokens = draw(has_bias=has_bias)
    tokens[0], tokens[2] = 5, 3
    is_banned = torch.tensor([True, False, True, False, False, False, False])
    dist = distribution(temperature=temperature, banned=(1, 9), is_banned=is_banned)
    inputs = [x.requires_grad_() for x in (rows, weight, bias) if x is not None]
    g, h = torch.randn(2, N, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def gradients(function, **options):
        logprobs, entropy = function(rows, weight, bias, tokens, dist, **options)
        return logprobs, entropy, *torch.autograd.grad((g * logprobs + h * entropy).sum(), inputs)

    for found, expected in zip(gradients(output_logprobs, has_entropy_gradient=True), gradients(naive), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize("has_entropy_gradient", [True, False])
def test_gradcheck(chunk_rows, has_entropy_gradient):
    rows, weight, bias, tokens = draw(seed=1)
    dist = distribution(temperature=0.8, chunk_rows=chunk_rows)

    def function(*inputs):
        logprobs, entropy = output_logprobs(*inputs, tokens, dist, has_entropy_gradient=has_entropy_gradient)
        return (logprobs, entropy) if has_entropy_gradient else logprobs

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in (rows, weight, bias)])


def test_only_what_is_needed_has_a_gradient():
    """This holds for trained rows or a trained weight alone, too. With a frozen weight the gradient of the rows is made
    in the forward pass, and it is the same.
    """
    rows, weight, bias, tokens = draw(seed=2)
    g = torch.arange(N, dtype=torch.float64) - 3
    found = {}
    for trained in ("rows weight bias", "rows", "weight", "bias", "rows bias", ""):
        given = {"rows": rows, "weight": weight, "bias": bias}
        given = {name: x.clone().requires_grad_(name in trained.split()) for name, x in given.items()}
        logprobs, entropy = output_logprobs(
            *given.values(), tokens, distribution(temperature=0.7), has_entropy_gradient=False
        )
        assert not entropy.requires_grad
        assert logprobs.requires_grad == bool(trained)
        if trained:
            (g * logprobs).sum().backward()
        for name, x in given.items():
            assert (x.grad is not None) == (name in trained.split())
            if x.grad is not None:
                torch.testing.assert_close(x.grad, found.setdefault(name, x.grad), atol=1e-12, rtol=1e-10)


def test_entropy_has_its_gradient_when_the_weight_is_frozen():
    rows, weight, bias, tokens = draw(seed=4)

    def gradient(function, **options):
        logprobs, entropy = function(rows, weight, bias, tokens, distribution(temperature=0.7), **options)
        return torch.autograd.grad((logprobs - 2 * entropy).sum(), rows)[0]

    rows.requires_grad_()
    found = gradient(output_logprobs, has_entropy_gradient=True)
    torch.testing.assert_close(found, gradient(naive), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_token_that_is_almost_sure_keeps_its_gradient(is_frozen):
    """1 - p = 1e-5. In bfloat16, W[token] minus the mean of W would leave only rounding."""
    rows, weight = torch.ones(1, 1), torch.tensor([[12.0], [0.5], [-0.25]])
    expected_rows = rows.double().requires_grad_()
    logits = expected_rows @ weight.double().T
    torch.log_softmax(logits, dim=-1)[0, 0].backward()
    rows.requires_grad_()
    dist = OutputDistribution(1.0, (), torch.zeros(1, dtype=torch.bool), torch.bfloat16, 8)
    logprobs, _ = output_logprobs(
        rows, weight.requires_grad_(not is_frozen), None, torch.tensor([0]), dist, has_entropy_gradient=False
    )
    logprobs.sum().backward()
    torch.testing.assert_close(rows.grad.double(), expected_rows.grad, rtol=0.02, atol=0)


def test_extreme_logits_stay_finite():
    rows, weight, _, tokens = draw(torch.float32, has_bias=False)
    rows = (rows * 1e4).requires_grad_()
    logprobs, entropy = output_logprobs(
        rows, weight.requires_grad_(), None, tokens, distribution(dtype=torch.float32), has_entropy_gradient=True
    )
    (logprobs + entropy).sum().backward()
    for x in (logprobs, entropy, rows.grad, weight.grad):
        assert torch.isfinite(x).all()
    assert (entropy >= -1e-4).all()
    expected = torch.log_softmax(rows.detach() @ weight.detach().T, dim=-1)[torch.arange(N), tokens]
    torch.testing.assert_close(logprobs.detach(), expected, rtol=1e-5, atol=0.1)


def test_minus_infinity_in_the_bias_takes_a_tokens_chance():
    """As in models whose vocabulary is padded; value and gradients are those of the other tokens alone."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(*shape, generator=generator).double() for shape in ((5, 4), (9, 4), (9,)))
    bias[6:] = -torch.inf
    tokens = torch.tensor([0, 5, 2, 3, 3])
    distribution = OutputDistribution(0.7, (), torch.zeros(5, dtype=torch.bool), torch.float64, 2)
    given = [x.clone().requires_grad_(True) for x in (rows, weight, bias)]
    logprobs, entropy = output_logprobs(*given, tokens, distribution, has_entropy_gradient=True)
    (logprobs.sum() + 0.3 * entropy.sum()).backward()
    kept = [rows.clone().requires_grad_(True), *(x[:6].clone().requires_grad_(True) for x in (weight, bias))]
    plain = torch.distributions.Categorical(logits=(kept[0] @ kept[1].T + kept[2]) / 0.7)
    (plain.log_prob(tokens).sum() + 0.3 * plain.entropy().sum()).backward()
    torch.testing.assert_close((logprobs, entropy), (plain.log_prob(tokens), plain.entropy()))
    for ours, theirs in zip(given, kept, strict=True):
        torch.testing.assert_close(ours.grad[: len(theirs)], theirs.grad)
        assert not ours.grad[len(theirs) :].any()


def test_an_empty_batch_gives_a_gradient_of_zeros():
    rows, weight = torch.zeros(0, D, requires_grad=True), torch.zeros(V, D, requires_grad=True)
    dist = OutputDistribution(1.0, (), torch.zeros(0, dtype=torch.bool), torch.float32, 8)
    logprobs, entropy = output_logprobs(
        rows, weight, None, torch.zeros(0, dtype=torch.long), dist, has_entropy_gradient=True
    )
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert not weight.grad.any()


SAMPLINGS = [Sampling(), Sampling(temperature=0.7, min_response_length=3, eos_ids=(1, 4))]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_layer_and_any_callable_like_it_agree(sampling, is_autocast, has_bias):
    """A callable takes the other path, through whole rows of logits."""
    generation = random_rollout([4, 1, 6]).generation
    if sampling.eos_ids:
        generation.tokens[(generation.tokens == 4) & generation.mask] = 5  # a banned token is never sampled
    features = torch.randn(*generation.mask.shape, D, generator=torch.Generator().manual_seed(3))
    layer = nn.Linear(D, 23, bias=has_bias)
    nn.init.normal_(layer.weight)

    def run(output_layer):
        inputs = features.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
            logprobs, entropy = token_logprobs(inputs, output_layer, generation, sampling, chunk_tokens=4)
        assert logprobs.dtype == entropy.dtype == torch.float32
        (logprobs.sum() + 0.3 * entropy.sum()).backward()
        return logprobs, entropy, inputs.grad, *(p.grad for p in layer.parameters())

    scale = 3e-2 if is_autocast else 1e-5
    for found, expected in zip(run(layer), run(lambda x: layer(x)), strict=True):
        torch.testing.assert_close(found, expected, atol=scale * float(expected.detach().abs().max()), rtol=0)


def test_only_filters_need_whole_rows_of_logits(monkeypatch):
    """Greedy sampling has no filter to apply: its log-probs are those of the model's own distribution."""
    generation, layer = random_rollout([4, 1, 6]).generation, nn.Linear(D, 23)
    features = torch.randn(*generation.mask.shape, D, generator=torch.Generator().manual_seed(3))
    plain = token_logprobs(features, layer, generation, Sampling(), chunk_tokens=4)
    for top_k in (1, 3):
        filtered = token_logprobs(features, layer, generation, Sampling(top_k=top_k), chunk_tokens=4)
        assert not torch.allclose(plain[0], filtered[0])
    monkeypatch.setattr("ppo.lm.logprobs._whole_row_logprobs", None)
    greedy = token_logprobs(features, layer, generation, Sampling(temperature=0.0, top_k=3), chunk_tokens=4)
    for found, expected in zip(greedy, plain, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (50, 2), (10_000, 4)])
def test_whole_rows_of_logits_come_a_few_at_a_time(monkeypatch, limit, most):
    """As many rows as asked for, fewer if a row is long, but at least one."""
    monkeypatch.setattr(ppo.lm.logprobs, "_CHUNK_LOGITS", limit)
    generation, layer, seen = random_rollout([4, 1, 6]).generation, nn.Linear(D, 23), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    token_logprobs(torch.randn(*generation.mask.shape, D), layer, generation, Sampling(), chunk_tokens=4)
    assert max(seen) == most
    assert sum(seen) == 11


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=2)])
def test_a_batch_without_a_real_token_has_zeros(sampling):
    generation = random_rollout([4, 2]).generation
    empty = replace(generation, mask=torch.zeros_like(generation.mask), action_mask=None)
    for found in token_logprobs(torch.randn(2, 4, D), nn.Linear(D, 23), empty, sampling, chunk_tokens=4):
        assert torch.equal(found, torch.zeros(2, 4))


def test_what_counts_as_a_plain_linear_layer():
    class Adapted(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    hooked = nn.Linear(2, 2)
    handle = hooked.register_forward_hook(lambda *_: None)
    assert is_plain_linear(nn.Linear(2, 2, bias=False))
    assert not is_plain_linear(Adapted(2, 2))
    assert not is_plain_linear(hooked)
    handle.remove()
    assert is_plain_linear(hooked)
    assert not is_plain_linear(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


def test_tied_weights_get_both_gradients():
    generation = random_rollout([4, 2, 5]).generation

    def gradient(is_tiled):
        actor = ActorCritic(tiny_gpt2())
        layer = actor.backbone.output_layer
        assert layer.weight is actor.policy.transformer.wte.weight
        if not is_tiled:
            actor.backbone.output_layer = lambda x: layer(x)
        actor.evaluate(generation, Sampling(), chunk_tokens=4).logprobs.sum().backward()
        return layer.weight.grad

    torch.testing.assert_close(gradient(True), gradient(False), atol=1e-5, rtol=1e-4)


def test_nothing_as_large_as_the_logits_is_kept_or_made(monkeypatch):
    """Every tensor that a forward and backward pass makes is smaller than [N, V], except the weight's gradient."""
    from torch.utils._python_dispatch import TorchDispatchMode

    monkeypatch.setattr(ppo.lm.tiled_logprobs, "_TILE_WIDTH", 16)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor))
            return result

    rows, weight = torch.randn(64, D), torch.randn(1000, D)
    dist = OutputDistribution(1.0, (), torch.zeros(64, dtype=torch.bool), torch.float32, 32)
    for is_frozen in (True, False):
        sizes.clear()
        with Sizes():
            logprobs, entropy = output_logprobs(
                rows.requires_grad_(), weight.requires_grad_(not is_frozen), None,
                torch.zeros(64, dtype=torch.long), dist, has_entropy_gradient=not is_frozen,
            )  # fmt: skip
            (logprobs + entropy).sum().backward()
        assert max(sizes) <= 1000 * D
