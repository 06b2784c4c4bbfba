"""PPO at forced states: the policy is run once over a true text, and acts at every one of its states.

A free rollout leaves a memorised passage after a few tokens and never returns, so that most of its states are never
visited. Here every state is: the true text stands in the context, K actions are drawn at each of its states, and each
action is an episode of one token. Its reward is the log-ratio to the bounded counterfactual reference,

    r(a | s) = log q(a | s) - log pi_old(a | s),   clipped to ±8 nats,

which is what the trainer computes for a score of 0 and ``Config(kl_coef=1)``. The advantage takes off the exact mean of
r over the policy's distribution and divides by its exact deviation; no critic is needed. A state where the policy is
certain is drawn from hot, policy and reference alike, so that the optimum stays q: at p = 0.99 nearly every action
would be the true token, and nothing could be learned about the others.

Forced states teach nothing about what the policy writes once it has left the text. So some rows are *own* ones: the
policy continues the prefix freely, and what it wrote stands in the context in the place of the true text. As long as it
follows the true text the reference is bounded, and afterwards it is the original itself.

Three seams of :class:`ppo.Trainer` carry it: :class:`ForcedStates` is the sampler, :func:`bounded_reference` the
reference, and :func:`state_advantages` the advantage. What the sampler knows of a row goes to the other two in
``Sample.info``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppo.buffer import align
from ppo.generation import generate
from ppo.lm.backbone import Backbone
from ppo.lm.distribution import next_token_logprobs
from ppo.lm.logprobs import response_positions
from ppo.policy import Policy
from ppo.prompts import Prompt
from ppo.sampler import collate
from ppo.types import Evaluation, Generation, Rollout, Sample
from rewards.bounded import bounded_logprobs

MOST_REWARD = 8.0  # nats
CERTAIN = 0.6  # probability of the true token from which a state is drawn from hot
WINDOWS = 10  # rows of a passage, beside its own rows
LEAST_DEVIATION = 0.3  # nats; a state that is nearly right still counts, but its noise is not blown up


@dataclass(frozen=True)
class Judged:
    """What the sampler knows about the actions of a row, in the place of a reward.

    ``ref_logprobs`` [S K]: under the reference, as far from the policy's as the bound on the reward allows.
    ``means`` and ``deviations`` [S]: of the reward over the policy's distribution at each state, nats.
    """

    ref_logprobs: Tensor
    means: Tensor
    deviations: Tensor


class Acts(NamedTuple):
    """What was drawn at N states. ``actions``, ``logprobs``, ``ref_logprobs`` [N, K]; the others [N].

    ``entropy`` of the policy, ``means`` and ``deviations`` of the reward over it, in nats. ``heat``: what divided the
    logits. ``true_p``: the policy's probability of the true token.
    """

    actions: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    heat: Tensor
    means: Tensor
    deviations: Tensor
    true_p: Tensor


@dataclass(frozen=True)
class ForcedStates:
    """A sampler (:mod:`ppo.sampler`): ``actions`` tokens at every state of the text of each prompt's row.

    original     the model before unlearning, frozen, on the device of the policy
    actions      K, drawn at each state with replacement
    heat         what divides the logits where the policy is certain of the true token, 1: nothing does
    of_reference the tokens are drawn from the reference, for :func:`supervised_loss`
    chunk_tokens states that pass the output layers at once

    A row holds ``text_ids``, what truly follows its prompt, and ``chance``, the chance level of each of these tokens.
    In a row with ``is_own`` the policy's own continuation stands in the context.
    """

    original: nn.Module
    actions: int = 32
    heat: float = 2.0
    of_reference: bool = False
    chunk_tokens: int = 1024

    @torch.no_grad()
    def __call__(
        self, policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]
    ) -> Generation:
        """Actions at forced states, with their log-probs and all that :class:`Judged` holds."""
        texts = own_texts(policy, prompts, seed=seed, request_ids=request_ids)
        given = collate([p.ids for p in prompts], texts, device=policy.device)
        bounded = [bounded_tokens(text, p.row) for text, p in zip(texts, prompts, strict=True)]
        forced = replace(given, context=given.tokens)
        ends, actor, original = policy.sampling.eos_ids or (), policy.actor.backbone, Backbone(self.original)
        with policy.precision():
            ours, theirs = _features(actor, forced), _features(original, forced)
        rows = []
        for row, request in enumerate(request_ids):
            generator = torch.Generator(policy.device).manual_seed((seed + 0x9E3779B1 * request) % 2**63)
            length = len(texts[row])
            truth, bound = (torch.tensor(column, device=policy.device) for column in bounded[row])
            parts = []
            for start in range(0, length, self.chunk_tokens):
                part = slice(start, min(start + self.chunk_tokens, length))
                with policy.precision():
                    logits = actor.output_layer(ours[row, part]).float()
                    plain = original.output_layer(theirs[row, part]).float()
                reference = bounded_logprobs(plain, truth[part], bound[part], end_ids=ends)
                parts.append(self._act(logits, reference, truth[part], policy, generator))
            rows.append(Acts(*(torch.cat(column) for column in zip(*parts, strict=True))))
        is_own = torch.tensor([bool(p.row.get("is_own")) for p in prompts], device=policy.device)
        return _laid_out(forced, rows, self.actions, is_own)

    def _act(
        self, logits: Tensor, reference: Tensor, truth: Tensor, policy: Policy, generator: torch.Generator
    ) -> Acts:
        """Draw at the states of logits [N, V]; ``reference`` log-probs [N, V], ``truth`` int64 [N]."""
        true_p = torch.softmax(logits, dim=-1).gather(-1, truth.unsqueeze(-1))
        certainty = ((true_p - CERTAIN) / (1 - CERTAIN)).clamp(min=0)
        heat = 1 + (self.heat - 1) * certainty**1.5
        logprobs = next_token_logprobs(logits / heat, policy.sampling)
        target = next_token_logprobs(reference / heat, policy.sampling)
        chances = logprobs.exp()
        rewards = (target - logprobs).clamp(-MOST_REWARD, MOST_REWARD)
        means = (chances * rewards).sum(dim=-1, keepdim=True)
        deviations = (chances * (rewards - means) ** 2).sum(dim=-1).sqrt()
        drawn_from = target.exp() if self.of_reference else chances
        actions = torch.multinomial(drawn_from, self.actions, replacement=True, generator=generator)
        drawn = logprobs.gather(-1, actions)
        entropy = -(chances * logprobs.clamp(min=-1e4)).sum(dim=-1)
        judged = drawn + rewards.gather(-1, actions)
        states = (heat.squeeze(-1), means.squeeze(-1), deviations, true_p.squeeze(-1))
        return Acts(actions, drawn, judged, entropy, *states)


def own_texts(policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]) -> list[list[int]]:
    """What stands in the context behind each prompt: the true text, or in own rows what the policy writes as long."""
    texts = [list(p.row["text_ids"]) for p in prompts]
    own = [i for i, p in enumerate(prompts) if p.row.get("is_own")]
    if own:
        sampling = replace(policy.sampling, response_length=max(len(texts[i]) for i in own), min_response_length=0)
        found = generate(
            policy.model, [prompts[i].ids for i in own], sampling, seed=seed,
            request_ids=[request_ids[i] for i in own], slots=policy.limits.rollout_slots,
        )  # fmt: skip
        for i, tokens, mask in zip(own, found.tokens, found.mask, strict=True):
            texts[i] = tokens[mask].tolist()[: len(texts[i])]
    return texts


def bounded_tokens(text: Sequence[int], row: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """The token that the reference bounds in each state of a text, and its bound.

    It is the true one where the text has followed the truth so far. Elsewhere it is the text's own, with the bound 1,
    which bounds nothing. Example: truth 5 6 7, text 5 9 8 -> tokens 5 6 8, of which the last one is not bounded.
    """
    truth, chance = row["text_ids"], row["chance"]
    left = next((t for t, (a, b) in enumerate(zip(text, truth, strict=False)) if a != b), len(text))
    followed = min(left + 1, len(text), len(truth))
    return [*truth[:followed], *text[followed:]], [*chance[:followed], *[1.0] * (len(text) - followed)]


def _features(backbone: Backbone, generation: Generation) -> Tensor:
    """What the output layer reads at each state, [B, S, D]."""
    rows = align(generation)
    found = backbone(rows.input_ids, rows.attention_mask).before_logits
    return response_positions(found, rows.prompt_lengths, generation.num_states)


def _laid_out(forced: Generation, rows: Sequence[Acts], count: int, is_own: Tensor) -> Generation:
    """The generation of all rows, [B, S K], from what was drawn at the states of each. ``is_own`` bool [B]."""
    mask = forced.mask.repeat_interleave(count, dim=1)
    shape, states = mask.shape, forced.mask.shape

    def placed(column: str, size: torch.Size, dtype: torch.dtype = torch.float32) -> Tensor:
        result = torch.zeros(size, dtype=dtype, device=mask.device)
        for i, row in enumerate(rows):
            flat = getattr(row, column).flatten()
            result[i, : len(flat)] = flat
        return result

    entropy, true_p = placed("entropy", states), placed("true_p", states)
    kl, of_own = -placed("means", states), forced.mask & is_own.unsqueeze(1)
    of_text = forced.mask & ~is_own.unsqueeze(1)
    truth = true_p[of_text]
    metrics = {
        "forced/states": float(of_text.sum()),
        "forced/own_states": float(of_own.sum()),
        "forced/true_token_p": _mean(truth),
        "forced/true_token_nll": _mean(-truth.clamp(min=1e-30).log()),
        "forced/certain_share": _mean((truth > 0.9).float()),
        "forced/kl": _mean(kl[of_text]),
        "forced/own_kl": _mean(kl[of_own]),
    }
    info = [Judged(row.ref_logprobs.flatten(), row.means, row.deviations) for row in rows]
    return replace(
        forced,
        tokens=placed("actions", shape, torch.long),
        mask=mask,
        action_mask=mask,
        logprobs=placed("logprobs", shape),
        entropy=entropy.repeat_interleave(count, dim=1),
        state_temperatures=placed("heat", states),
        is_ended=torch.zeros(len(forced), dtype=torch.bool, device=mask.device),
        info=info,
        metrics=metrics,
    )


def _mean(values: Tensor) -> float:
    """The mean, 0 of none: every process gives every metric."""
    return float(values.sum()) / max(len(values), 1)


def bounded_reference(generation: Generation, samples: Sequence[Sample]) -> Tensor:
    """Log-probs of the actions under the bounded reference, [B, T], as :class:`ForcedStates` noted them."""
    return _of_rows([sample.info.ref_logprobs for sample in samples], generation.mask)


def state_advantages(rewards: Tensor, values: Tensor, mask: Tensor, samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, T]: the reward less its exact mean at the state, over its exact deviation there."""
    count = [len(s.ids) // len(s.info.means) for s in samples]
    means = _of_rows([s.info.means.repeat_interleave(k) for s, k in zip(samples, count, strict=True)], mask)
    spread = _of_rows([s.info.deviations.repeat_interleave(k) for s, k in zip(samples, count, strict=True)], mask)
    advantages = (rewards - means) / spread.clamp(min=LEAST_DEVIATION) * mask
    return advantages, rewards * mask


def supervised_loss(
    new: Evaluation, part: Rollout, *, num_tokens: int, num_sequences: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean NLL of the drawn tokens, nats: cross-entropy with the reference that they were drawn from.

    A :data:`ppo.types.PolicyLoss`, for ``ForcedStates(of_reference=True, heat=1)``: the states and targets of PPO at
    forced states, learned by supervision.
    """
    return -(new.logprobs * part.generation.action_mask).sum() / num_tokens, {}


def no_score(samples: list[Sample]) -> list[float]:
    """0 for each sample: all of the reward is the log-ratio to the reference."""
    return [0.0] * len(samples)


def _of_rows(rows: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Rows of different lengths as one [B, T], 0 on padding."""
    result = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    for i, row in enumerate(rows):
        result[i, : len(row)] = row
    return result


def forced_rows(
    passages: Sequence[Any],
    chances: Sequence[Sequence[float]],
    *,
    windows: tuple[int, int, int] = (4, 4, 2),
    own: int = 0,
    seed: int,
    is_suffix: bool = False,
) -> list[dict[str, Any]]:
    """The rows of each passage: ``windows`` from its start, from its prefix, from anywhere; and ``own`` own rows.

    A window reaches to the end of the passage. Its first token is the prompt, every other one is a state's true token.
    The prompt of an own row is the prefix. ``chances``: the chance level of every token of each passage. ``is_suffix``:
    all windows are the suffix behind its prefix, and nothing else of a passage is a state.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for passage, chance in zip(passages, chances, strict=True):
        ids = passage.ids
        latest = max(1, len(ids) - max(2, len(ids) // 4))
        anywhere = torch.randint(0, latest, (windows[2],), generator=generator).tolist()
        starts = [0] * windows[0] + [len(passage.pre_prefix)] * windows[1] + anywhere
        suffix = {"text_ids": list(passage.suffix), "chance": list(chance[-len(passage.suffix) :])}
        of_prefix = {"prompt": list(passage.prefix), **suffix, "id": passage.id}
        for start in starts:
            text, levels = list(ids[start + 1 :]), list(chance[start + 1 :])
            window = {"prompt": [ids[start]], "text_ids": text, "chance": levels, "id": passage.id}
            rows.append(dict(of_prefix) if is_suffix else window)
        rows += [{**of_prefix, "is_own": True}] * own
    return rows
