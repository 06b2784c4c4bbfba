"""Every policy loss and every mean equals plain loops, also with holes in the action mask; identities between them."""

import math
from types import SimpleNamespace

import pytest
import torch

from ppo import Config
from ppo.policy_losses import loss_mean, policy_loss, policy_loss_of

LOSSES = {
    "clip": {},
    "clip_higher": {"policy_clip_high": 0.5},
    "dual_clip": {"policy_dual_clip": 1.5},
    "both": {"policy_clip": 0.1, "policy_clip_high": 0.9, "policy_dual_clip": 1.2},
    "gspo": {"policy_loss": "gspo"},
    "gspo_higher": {"policy_loss": "gspo", "policy_clip": 0.1, "policy_clip_high": 0.3},
    "cispo": {"policy_loss": "cispo"},
    "cispo_high": {"policy_loss": "cispo", "policy_clip": 1.0, "policy_clip_high": 0.4},
    "reinforce": {"policy_loss": "reinforce"},
}
MEANS = ["tokens", "sequences", "sequence_sums", "constant"]
MASKS = {
    "ragged": [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]],
    "holes": [[1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]],
    "length one": [[1, 0, 0, 0, 0, 0]] * 4,
}


def given(mask="ragged", seed=0):
    """Log-probs now (with a gradient), log-probs before, advantages; wild numbers where there is no action."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda scale: torch.randn(4, 6, generator=g, dtype=torch.float64) * scale  # noqa: E731
    return SimpleNamespace(
        old=-1 - draw(1).abs(), new=(-1 - draw(1).abs()).requires_grad_(), advantages=draw(1),
        mask=torch.tensor(MASKS[mask], dtype=torch.bool),
    )  # fmt: skip


def config_of(**changes):
    return Config(response_length=8, **changes)


def found(x, rows=slice(None), **changes):
    """The loss of some rows of a minibatch, its gradient, and its statistics."""
    part = SimpleNamespace(
        old_logprobs=x.old[rows],
        advantages=x.advantages[rows],
        generation=SimpleNamespace(action_mask=x.mask[rows]),
        importance_weights=None,
    )
    loss, statistics = policy_loss_of(config_of(**changes))(
        SimpleNamespace(logprobs=x.new[rows]), part, num_tokens=int(x.mask.sum()), num_sequences=4
    )
    (gradient,) = torch.autograd.grad(loss, x.new)
    return loss.detach(), gradient, {name: float(value) for name, value in statistics.items()}


def token_by_hand(c, new, old, a, of_response):
    """The loss of one token, its derivative by the log-prob, and whether a clip acts."""
    ratio, low = math.exp(new - old), 1 - c.policy_clip
    high = 1 + (c.policy_clip if c.policy_clip_high is None else c.policy_clip_high)
    if c.policy_loss == "reinforce":
        return -a * new, -a, False
    if c.policy_loss == "cispo":
        weight = min(max(ratio, low), high)
        return -a * weight * new, -a * weight, not low <= ratio <= high
    if c.policy_loss == "gspo":
        ratio = of_response
    if a > 0:
        return (-a * ratio, -a * ratio, False) if ratio <= high else (-a * high, 0.0, True)
    most = math.inf if c.policy_dual_clip is None else c.policy_dual_clip
    inside = low <= ratio <= most
    return -a * min(max(ratio, low), most), -a * ratio if inside else 0.0, not inside


def by_hand(x, **changes):
    c, n = config_of(**changes), int(x.mask.sum())
    loss, gradient, clipped = 0.0, torch.zeros(4, 6, dtype=torch.float64), 0
    for b in range(4):
        actions = [t for t in range(6) if x.mask[b, t]]
        of_response = math.exp(sum(float(x.new[b, t].detach() - x.old[b, t]) for t in actions) / len(actions))
        weight = {
            "tokens": 1 / n, "sequences": 1 / 4 / len(actions), "sequence_sums": 1 / 4, "constant": 1 / 4 / 8,
        }[c.loss_mean]  # fmt: skip
        for t in actions:
            value, slope, is_clipped = token_by_hand(
                c, float(x.new[b, t].detach()), float(x.old[b, t]), float(x.advantages[b, t]), of_response
            )
            loss, clipped = loss + value * weight, clipped + is_clipped
            gradient[b, t] = slope * weight
    return loss, gradient, clipped / n


def assert_equal(one, other):
    assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-9)
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_and_mean_is_its_definition(name, mean, mask):
    acted = []
    for seed in range(3):
        x = given(mask, seed)
        loss, gradient, statistics = found(x, loss_mean=mean, **LOSSES[name])
        expected, slopes, share = by_hand(x, loss_mean=mean, **LOSSES[name])
        assert_equal((loss, gradient), (expected, slopes))
        assert ("clip_fraction" in statistics) == (name != "reinforce")
        assert statistics.get("clip_fraction", 0.0) == pytest.approx(share, abs=1e-6)
        acted.append(share)
    assert name == "reinforce" or 0 < sum(acted) < 3


@pytest.mark.parametrize("mask", ["ragged", "holes"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("name", list(LOSSES))
def test_every_split_into_microbatches_adds_up_to_the_whole(name, mean, mask):
    x, changes = given(mask), {"loss_mean": mean, **LOSSES[name]}
    whole = found(x, **changes)
    for split in ([[0], [1], [2], [3]], [[0, 3], [2, 1]], [[3], [1, 0, 2]]):
        parts = [found(x, rows, **changes) for rows in split]
        assert_equal((sum(p[0] for p in parts), sum(p[1] for p in parts)), whole)
        for key, value in whole[2].items():
            assert sum(p[2][key] for p in parts) == pytest.approx(value, abs=1e-6)


def test_the_default_is_ppo_to_the_bit():
    x = given("holes")
    loss, statistics = policy_loss(x.new, x.old, x.advantages, x.mask, clip=0.2, num_tokens=int(x.mask.sum()))
    ratio = torch.exp((x.new - x.old) * x.mask)
    plain, clipped = -x.advantages * ratio, -x.advantages * torch.clamp(ratio, 0.8, 1.2)
    ours = found(x)
    assert loss == ours[0] == (torch.maximum(plain, clipped) * x.mask).sum() / int(x.mask.sum())
    assert float(statistics["clip_fraction"]) == ours[2]["clip_fraction"] > 0


@pytest.mark.parametrize(
    ("mask", "changes"),
    [
        ("holes", {"policy_clip_high": 0.2}),
        ("holes", {"policy_dual_clip": 1e9}),
        ("length one", {"policy_loss": "gspo"}),
        ("holes", {"policy_clip": 0.2, "policy_clip_high": 0.2, "policy_dual_clip": 1e9}),
    ],
)
def test_where_it_is_ppo_it_is_ppo(mask, changes):
    x = given(mask)
    assert_equal(found(x, **changes), found(x))


def test_gspo_is_its_objective_where_a_response_has_one_advantage():
    """Zheng et al. 2025, eq. 5 to 7, differentiated as it stands."""
    for seed in range(5):
        x = given("holes", seed)
        x.advantages = x.advantages[:, :1].expand(4, 6)
        lengths, a = x.mask.sum(dim=1), x.advantages[:, 0]
        s = torch.exp(((x.new - x.old) * x.mask).sum(dim=1) / lengths)
        loss = -torch.minimum(s * a, s.clamp(0.8, 1.2) * a).mean()
        expected = loss.detach(), torch.autograd.grad(loss, x.new)[0]
        assert_equal(found(x, policy_loss="gspo", loss_mean="sequences"), expected)


@pytest.mark.parametrize("mean", MEANS)
def test_the_gradient_of_cispo_is_reinforce_s_times_the_clipped_weight(mean):
    x = given("holes")
    weight = torch.exp(x.new - x.old).detach().clamp(0.9, 1.5)
    _, cispo, _ = found(x, policy_loss="cispo", policy_clip=0.1, policy_clip_high=0.5, loss_mean=mean)
    _, plain, _ = found(x, policy_loss="reinforce", loss_mean=mean)
    torch.testing.assert_close(cispo, weight * plain, rtol=0, atol=1e-12)
    assert (cispo != 0).equal(x.mask)  # no token is without a gradient


def test_reinforce_has_ppo_s_gradient_before_the_policy_moved():
    x = given("holes")
    x.old = x.new.detach().clone()
    torch.testing.assert_close(found(x, policy_loss="reinforce")[1], found(x)[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found(x, policy_loss="cispo")[1], found(x)[1], rtol=0, atol=1e-12)


def test_all_means_are_one_on_responses_of_one_length():
    g = torch.Generator().manual_seed(0)
    losses, mask = torch.randn(4, 6, generator=g, dtype=torch.float64), torch.ones(4, 6, dtype=torch.bool)
    mask[:, 2] = False
    losses[:, 2] = 1e6
    of = {kind: float(loss_mean(losses, mask, kind=kind, response_length=8, num_tokens=20, num_sequences=4))
          for kind in MEANS}  # fmt: skip
    assert of["tokens"] == pytest.approx(float(losses[mask].mean()), abs=1e-12)
    assert of["sequences"] == pytest.approx(of["tokens"], abs=1e-12)
    assert of["sequence_sums"] == pytest.approx(5 * of["tokens"], abs=1e-12)
    assert of["constant"] == pytest.approx(5 / 8 * of["tokens"], abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"policy_clip_high": 0.0}, "policy_clip_high=0.0 must be above 0"),
        ({"policy_dual_clip": 1.0}, "policy_dual_clip=1.0 must be above 1"),
        ({"policy_loss": "reinforce", "policy_clip_high": 0.3}, "policy_clip_high=0.3 must be None for policy_loss='"),
        ({"policy_loss": "gspo", "policy_dual_clip": 3.0}, "policy_dual_clip=3.0 must be None for policy_loss='gspo'"),
        ({"policy_loss": "cispo", "policy_dual_clip": 3.0}, "policy_dual_clip=3.0 must be None for policy_loss='ci"),
        ({"policy_loss": "reinforce", "policy_dual_clip": 3.0}, "policy_dual_clip=3.0 must be None"),
        ({"policy_loss": "ppo"}, "policy_loss='ppo'"),
        ({"loss_mean": "mean"}, "loss_mean='mean'"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, problem):
    with pytest.raises(ValueError, match=problem.replace(".", r"\.")):
        Config(**changes)
