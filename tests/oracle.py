"""One PPO step from given responses to updated weights, in float64 and plain loops, without any code of ``ppo/``.

Torch provides the model's own forward pass (on one unpadded sequence at a time), autograd through it, and the random
generator that decides the order of rows. Everything else is written out from the sources that the library names: the
sampling distribution, KL, reward shaping, whitening, GAE and the group estimators, the losses, retain text, and the
controller of the KL coefficient. Clipping, AdamW and the schedule are in tests/oracle_optimizer.py. The code is slow.
Read it beside a paper; it is one file of more than 300 lines, so that it reads from top to bottom.

The config is only read by attribute. An option that this module does not read has no effect here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, pvariance
from types import SimpleNamespace

import torch

from tests.oracle_optimizer import PlainAdamW


@dataclass
class Given:
    """A step's responses: token ids, whether an EOS ended them, and the reward's answer (a number or one per token)."""

    prompts: list[list[int]]
    responses: list[list[int]]
    is_ended: list[bool]
    answers: list
    sampler_logprobs: list[list[float]] = field(default_factory=list)


@dataclass
class Oracle:
    """Policy, critic and reference are causal LMs in float64. ``head``: (weight, bias) of each layer, tanh between.

    ``generator`` draws the order of rows and the retain texts, as the library's generator does at that point.
    """

    config: SimpleNamespace
    policy: torch.nn.Module
    generator: torch.Generator
    eos_ids: tuple[int, ...]
    head: list = field(default_factory=list)
    critic: torch.nn.Module | None = None
    reference: torch.nn.Module | None = None
    retain: list[list[int]] = field(default_factory=list)

    def __post_init__(self):
        self.kl_coef, self.step_count = self.config.kl_coef, 0
        self.raw_numbers: list[float] = []
        self.optimizer = PlainAdamW(self.config)

    def parameters(self):
        """The trained parameters under the library's names: the policy's first, the value function's last."""
        found = {f"policy.{name}": p for name, p in self.policy.named_parameters()}
        if self.critic is not None:
            found |= {f"critic.{name}": p for name, p in self.critic.named_parameters()}
        for i, layer in enumerate(self.head):
            found |= {f"value_head.layers.{2 * i}.{n}": p for n, p in zip(("weight", "bias"), layer, strict=True)}
        return {name: p for name, p in found.items() if p.requires_grad}

    # ------------------------------------------------------------------ the forward

    def distribution(self, logits, index, token, kept=None):
        """Log-probability, by id, of every token that may be sampled as response token ``index``.

        ``kept``: those that the old policy could sample there, if they are replayed.
        """
        if kept is not None:
            log_chances = torch.log_softmax(torch.stack([logits[v] for v in kept]) / self.config.temperature, dim=0)
            return dict(zip(kept, log_chances, strict=True))
        c, numbers = self.config, (logits / self.config.temperature).tolist()
        allowed = [v for v in range(len(numbers)) if not (index < c.min_response_length and v in self.eos_ids)]
        allowed.sort(key=lambda v: -numbers[v])
        if c.top_k and c.top_k < len(allowed):
            allowed = [v for v in allowed if numbers[v] >= numbers[allowed[c.top_k - 1]]]
        if c.top_p < 1:
            total, mass, last = sum(math.exp(numbers[v]) for v in allowed), 0.0, allowed[0]
            for v in allowed:
                if mass / total >= c.top_p:
                    break
                mass, last = mass + math.exp(numbers[v]), v
            allowed = [v for v in allowed if numbers[v] >= numbers[last]]
        if token not in allowed:
            allowed.append(token)  # the filters exclude it now; they did not when it was sampled
        log_chances = torch.log_softmax(torch.stack([logits[v] for v in allowed]) / c.temperature, dim=0)
        return dict(zip(allowed, log_chances, strict=True))

    def logprobs(self, model, prompt, response, kept=None):
        """Log-prob of every response token, entropy before it, and the hidden states that both come from.

        ``kept``: for every response token the tokens that are replayed, or None.
        """
        output = model(input_ids=torch.tensor([prompt + response]), output_hidden_states=True, use_cache=False)
        picked, entropies, hidden = [], [], []
        for t, token in enumerate(response):
            place = len(prompt) + t - 1
            chances = self.distribution(output.logits[0, place], t, token, kept and kept[t])
            picked.append(chances[token])
            entropies.append(-sum(x.exp() * x for x in chances.values()))
            hidden.append(output.hidden_states[-1][0, place])
        return picked, entropies, hidden

    def values(self, hidden, prompt, response):
        """V before every response token."""
        if not self.head:
            return [torch.tensor(0.0, dtype=torch.float64) for _ in response]
        if self.critic is not None:
            output = self.critic(input_ids=torch.tensor([prompt + response]), output_hidden_states=True)
            hidden = [output.hidden_states[-1][0, len(prompt) + t - 1] for t in range(len(response))]
        elif self.config.detach_value_head:
            hidden = [x.detach() for x in hidden]
        result = []
        for x in hidden:
            for i, (weight, bias) in enumerate(self.head):
                x = weight @ (x if i == 0 else torch.tanh(x)) + bias
            result.append(x[0])
        return result

    @torch.no_grad()
    def kept(self, prompt, response):
        """The tokens that the filters of the old policy leave before every response token, if they are replayed."""
        if self.config.kept_sets == "recompute":
            return None
        logits = self.policy(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 :]
        return [list(self.distribution(logits[t], t, token)) for t, token in enumerate(response)]

    # ------------------------------------------------------------------ from answers to advantages

    def token_rewards(self, given):
        """The reward of every token before KL, from the raw answers."""
        c = self.config
        is_dense = isinstance(given.answers[0], list)
        if c.scale_scores:
            self.raw_numbers += [x for a in given.answers for x in (a if is_dense else [a])]
            n, mean = len(self.raw_numbers), fmean(self.raw_numbers)
            scale = self.scale = math.sqrt(sum((x - mean) ** 2 for x in self.raw_numbers) / (n - 1))
        else:
            scale = 1.0
        limit = math.inf if c.clip_scores is None else c.clip_scores
        rewards = []
        for response, answer, is_ended in zip(given.responses, given.answers, given.is_ended, strict=True):
            row = list(answer) if is_dense else [0.0] * (len(response) - 1) + [answer]
            row = [min(max(x / scale, -limit), limit) for x in row]
            row[-1] -= 0.0 if is_ended else c.missing_eos_penalty
            if c.overlong_tokens:
                beyond = len(response) - (c.response_length - c.overlong_tokens)
                row[-1] -= c.overlong_penalty * max(0, beyond) / c.overlong_tokens
            rewards.append(row)
        return rewards

    def kl(self, new, ref):
        """The KL estimate of one token, a float or a torch scalar."""
        d = new - ref
        exp = d.neg().exp() if isinstance(d, torch.Tensor) else math.exp(-d)
        return {"k1": d, "k2": d * d / 2, "k3": exp - 1 + d}[self.config.kl_estimator]

    def advantages(self, rewards, values):
        """Advantages and returns [B][T], before whitening."""
        c = self.config
        if c.advantage != "gae":
            result, n = [], c.samples_per_prompt
            totals = [sum(row) for row in rewards]
            for b, row in enumerate(rewards):
                group = totals[b // n * n : (b // n + 1) * n]
                mean = sum(group) / n
                if c.advantage == "rloo":
                    a = totals[b] - (sum(group) - totals[b]) / (n - 1)
                elif c.advantage == "grpo":
                    a = (totals[b] - mean) / (math.sqrt(sum((x - mean) ** 2 for x in group) / n) + 1e-4)
                else:
                    a = totals[b] if c.advantage == "reinforce++" else totals[b] - mean
                result.append([a] * len(row))
            return result, [[0.0] * len(row) for row in rewards]
        result, returns = [], []
        for r, v in zip(rewards, values, strict=True):
            policy, critic = c.gae_lambda, c.gae_lambda if c.value_gae_lambda is None else c.value_gae_lambda
            if c.gae_length_alpha is not None:
                policy = max(0.0, 1 - 1 / (c.gae_length_alpha * len(r)))
            result.append(self.gae(r, v, policy))
            returns.append([a + x for a, x in zip(self.gae(r, v, critic), v, strict=True)])
        return result, returns

    def gae(self, r, v, lam):
        """Advantages of one response: all later TD errors, each discounted by gamma * lam a token."""
        gamma, steps = self.config.gamma, range(len(r))
        deltas = [r[t] + gamma * (v[t + 1] if t + 1 < len(v) else 0.0) - v[t] for t in steps]
        return [sum((gamma * lam) ** (u - t) * deltas[u] for u in steps[t:]) for t in steps]

    def importance_weights(self, old, drawn):
        """By what the policy loss of each token is multiplied, [B][T]; and how often the cap acted."""
        c, self.num_cut = self.config, 0
        if c.importance == "off":
            return [[1.0] * len(row) for row in old]
        weights = []
        for p, q in zip(old, drawn, strict=True):
            ratios = [math.exp(a) / math.exp(b) for a, b in zip(p, q, strict=True)]
            if c.importance == "sequence":
                ratios = [math.prod(ratios)]
            capped = []
            for w in ratios:
                is_cut = c.importance_cap is not None and w > c.importance_cap
                self.num_cut += is_cut
                capped.append((c.importance_cap if c.importance_beyond == "truncate" else 0.0) if is_cut else w)
            weights.append(capped * len(p) if c.importance == "sequence" else capped)
        return weights

    @torch.no_grad()
    def rollout(self, given):
        """Everything that the update needs, as [B][T] lists of floats."""
        c, r = self.config, SimpleNamespace(old_logprobs=[], old_values=[], ref_logprobs=[], kl=[], entropy=[])
        self.replayed = [self.kept(*pair) for pair in zip(given.prompts, given.responses, strict=True)]
        for prompt, response, kept in zip(given.prompts, given.responses, self.replayed, strict=True):
            logprobs, entropies, hidden = self.logprobs(self.policy, prompt, response, kept)
            r.old_logprobs.append([float(x) for x in logprobs])
            r.entropy.append([float(x) for x in entropies])
            r.old_values.append([float(x) for x in self.values(hidden, prompt, response)])
            ref = r.old_logprobs[-1]
            if self.reference is not None and c.kl_coef > 0:
                ref = [float(x) for x in self.logprobs(self.reference, prompt, response, kept)[0]]
            r.ref_logprobs.append(ref)
            r.kl.append([self.kl(p, q) for p, q in zip(r.old_logprobs[-1], ref, strict=True)])
        coef = self.kl_coef if c.kl_as == "reward" else 0.0
        pairs = zip(self.token_rewards(given), r.kl, strict=True)
        r.rewards = [[x - coef * k for x, k in zip(*rows, strict=True)] for rows in pairs]
        if c.whiten_rewards:
            r.rewards = whitened(r.rewards, is_mean_kept=True)
        r.weights = self.importance_weights(r.old_logprobs, given.sampler_logprobs)
        r.advantages, r.returns = self.advantages(r.rewards, r.old_values)
        if c.advantage.startswith("reinforce++") or (c.advantage == "gae" and c.whiten_advantages):
            r.advantages = whitened(r.advantages, is_mean_kept=False)
        return r

    def summary(self, given, r):
        """The logged numbers of a rollout."""
        flat = {name: [x for row in rows for x in row] for name, rows in vars(r).items()}
        scores = [sum(a) if isinstance(a, list) else a for a in given.answers]
        sizes, mean = [len(response) for response in given.responses], fmean(scores)
        more = self.off_policy_summary(given, r) | (
            {"score/running_std": self.scale} if self.config.scale_scores else {}
        )
        return {
            "score/mean": mean,
            "score/std": math.sqrt(fmean((x - mean) ** 2 for x in scores)),
            "score/min": min(scores),
            "score/max": max(scores),
            "kl/per_sequence": sum(flat["kl"]) / len(sizes),
            "kl/per_token": fmean(flat["kl"]),
            "kl/coef": self.kl_coef,
            "reward/per_sequence": sum(flat["rewards"]) / len(sizes),
            "value/mean": fmean(flat["old_values"]),
            "return/mean": fmean(flat["returns"]),
            "response/length_mean": fmean(sizes),
            "response/length_min": min(sizes),
            "response/ended_share": sum(given.is_ended) / len(sizes),
            "response/distinct_share": len({tuple(response) for response in given.responses}) / len(sizes),
            "response/entropy": fmean(flat["entropy"]),
            "response/logprob_per_sequence": sum(flat["old_logprobs"]) / len(sizes),
        } | more

    def off_policy_summary(self, given, r):
        """How far the sampler's probabilities are from the policy's, and what the weights came to."""
        pairs = [
            pair
            for rows in zip(r.old_logprobs, given.sampler_logprobs, strict=True)
            for pair in zip(*rows, strict=True)
        ]
        gaps = [p - q for p, q in pairs]
        numbers = {
            "sampler/k3": fmean(math.exp(gap) - 1 - gap for gap in gaps),
            "sampler/ratio_max": math.exp(max(gaps)),
            "sampler/ratio_min": math.exp(min(gaps)),
        }
        if self.config.importance == "off":
            return numbers
        counted = [w for row in r.weights for w in (row[:1] if self.config.importance == "sequence" else row)]
        return numbers | {"importance/mean": fmean(counted), "importance/cut_share": self.num_cut / len(counted)}

    # ------------------------------------------------------------------ the update

    def update(self, given, r):
        """Run all epochs. Returns the metrics, as means over minibatches."""
        c, measured, skipped, empty = self.config, [], 0, 0
        is_stopped = False
        for _ in range(c.epochs):
            order = torch.randperm(len(given.prompts), generator=self.generator).tolist()
            for start in range(0, len(order), c.minibatch):
                chosen = order[start : start + c.minibatch]
                chosen = [b for b in chosen if given.is_ended[b] or not c.mask_overlong]
                if not chosen:
                    empty += 1
                    continue
                numbers = self.minibatch(given, r, chosen)
                if c.max_mean_ratio is not None and numbers["policy/ratio"] > c.max_mean_ratio:
                    skipped += 1
                    continue
                measured.append(numbers | self.optimizer.step(self.parameters(), self.step_count))
                is_stopped = c.stop_kl_per_token is not None and numbers["policy/approx_kl"] > c.stop_kl_per_token
                if is_stopped:
                    break
            if is_stopped:
                break
        per_sequence = fmean(sum(row) for row in r.kl)
        if c.kl_controller == "adaptive" and c.kl_coef > 0 and self.step_count >= c.critic_warmup_steps:
            error = min(0.2, max(-0.2, per_sequence / c.target_kl_per_sequence - 1))
            self.kl_coef *= 1 + error * len(given.prompts) / c.kl_horizon_sequences
        self.step_count += 1
        metrics = {name: fmean(m[name] for m in measured) for name in measured[0]} if measured else {}
        metrics["update/minibatches"] = len(measured)
        metrics |= {"update/skipped_minibatches": skipped} if skipped else {}
        metrics |= {"update/empty_minibatches": empty} if empty else {}
        if self.head:
            left = [a - b for rows in zip(r.returns, r.old_values, strict=True) for a, b in zip(*rows, strict=True)]
            metrics["value/explained_variance"] = 1 - pvariance(left) / pvariance([x for row in r.returns for x in row])
        return metrics | ({"update/stopped_early": 1} if is_stopped else {})

    def minibatch(self, given, r, rows):
        """Leave the gradient of one minibatch in the parameters and return its statistics."""
        c, n = self.config, sum(len(given.responses[b]) for b in rows)
        waits = self.step_count < c.critic_warmup_steps  # the critic learns alone
        for parameter in self.parameters().values():
            parameter.grad = None
        total, sums = 0.0, {}
        for b in rows:
            prompt, response = given.prompts[b], given.responses[b]
            logprobs, entropies, hidden = self.logprobs(self.policy, prompt, response, self.replayed[b])
            values = self.values(hidden, prompt, response)
            log_ratio = fmean(float(p.detach()) - q for p, q in zip(logprobs, r.old_logprobs[b], strict=True))
            weight = {
                "tokens": 1 / n, "sequences": 1 / len(rows) / len(response), "sequence_sums": 1 / len(rows),
                "constant": 1 / len(rows) / c.response_length,
            }[c.loss_mean]  # fmt: skip
            for t in range(len(response)):
                old = SimpleNamespace(**{name: numbers[b][t] for name, numbers in vars(r).items()})
                policy, value, numbers = self.token_loss(logprobs[t], entropies[t], values[t], old, log_ratio)
                total = total + value / n if waits else total + policy * weight + value / n
                for name, x in numbers.items():
                    share = weight if name in ("policy/loss", "kl/loss") else 1 / n
                    sums[name] = sums.get(name, 0.0) + float(x.detach() if isinstance(x, torch.Tensor) else x) * share
        if c.positive_coef > 0:
            scores = {b: sum(a) if isinstance(a := given.answers[b], list) else a for b in rows}
            good = [b for b in rows if scores[b] > c.positive_score]
            found = [x for b in good for x in self.logprobs(self.policy, given.prompts[b], given.responses[b])[0]]
            positive = -sum(found) / max(1, len(found))
            sums["policy/positive_loss"] = float(torch.as_tensor(positive).detach())
            total = total if waits else total + c.positive_coef * positive
        if c.retain_coef > 0:
            retain = self.retain_loss()
            sums["retain/loss"] = float(retain.detach())
            total = total if waits else total + c.retain_coef * retain
        total.backward()
        return sums

    def token_loss(self, logprob, entropy, value, old, log_ratio_of_response):
        """The loss of one token, its policy's part and its critic's, and its statistics."""
        c = self.config
        log_ratio = logprob - old.old_logprobs
        policy, is_cut = self.policy_loss(logprob, log_ratio, old.advantages, log_ratio_of_response)
        policy = policy * old.weights
        numbers = {
            "policy/loss": policy, "policy/entropy": entropy, "policy/ratio": log_ratio.exp(),
            "policy/approx_kl": log_ratio.exp() - 1 - log_ratio, "policy/log_ratio": abs(float(log_ratio.detach())),
        }  # fmt: skip
        numbers |= {} if is_cut is None else {"policy/clip_fraction": is_cut}
        loss, critic = policy - c.entropy_coef * entropy, 0.0
        if self.head:
            error, is_value_cut = (value - old.returns) ** 2 / 2, False
            moved = float(value.detach()) - old.old_values
            if c.value_clip is not None and abs(moved) > c.value_clip:
                clipped = (old.old_values + math.copysign(c.value_clip, moved) - old.returns) ** 2 / 2
                if clipped > float(error.detach()):
                    error, is_value_cut = 0 * error + clipped, True  # a gradient of 0, not None: Adam still moves
            critic = c.value_coef * error
            numbers |= {"value/loss": error, "value/clip_fraction": is_value_cut}
        if c.kl_as == "loss" and self.reference is not None and c.kl_coef > 0:
            kl = self.kl(logprob, old.ref_logprobs)
            loss, numbers["kl/loss"] = loss + self.kl_coef * kl, kl
        return loss, critic, numbers

    def policy_loss(self, logprob, log_ratio, a, log_ratio_of_response):
        """The policy's loss of one token, and whether a clip acts on it (None: it has no clip)."""
        c, r = self.config, math.exp(float(log_ratio.detach()))
        low, high = 1 - c.policy_clip, 1 + (c.policy_clip if c.policy_clip_high is None else c.policy_clip_high)
        if c.policy_loss == "reinforce":
            return -a * logprob, None
        if c.policy_loss == "cispo":
            return -a * min(max(r, low), high) * logprob, r < low or r > high
        if c.policy_loss == "gspo":
            r = math.exp(log_ratio_of_response)
            log_ratio = log_ratio_of_response + logprob - logprob.detach()  # a gradient by this token alone
        most = math.inf if c.policy_dual_clip is None else c.policy_dual_clip
        bound = min(r, high) if a > 0 else min(max(r, low), most) if a < 0 else r
        return (0 * log_ratio - a * bound, True) if bound != r else (-a * log_ratio.exp(), False)

    def retain_loss(self):
        """Mean over predicted tokens of randomly drawn pieces: -log p of the text, or KL(reference || policy)."""
        c, size = self.config, self.config.retain_tokens
        pieces = [text[i : i + size] for text in self.retain for i in range(0, len(text), size)]
        pieces = [piece for piece in pieces if len(piece) > 1]
        chosen = torch.randint(len(pieces), (c.retain_sequences,), generator=self.generator).tolist()
        total, count = 0.0, 0
        for ids in (pieces[i] for i in chosen):
            new = torch.log_softmax(self.policy(input_ids=torch.tensor([ids])).logits[0], dim=-1)
            for t in range(len(ids) - 1):
                if c.retain_loss == "lm":
                    total = total - new[t, ids[t + 1]]
                else:
                    with torch.no_grad():
                        ref = torch.log_softmax(self.reference(input_ids=torch.tensor([ids])).logits[0, t], dim=-1)
                    total = total + sum(q.exp() * (q - p) for q, p in zip(ref, new[t], strict=True))
                count += 1
        return total / count


def whitened(rows, *, is_mean_kept):
    """Ragged rows scaled to unit (biased) variance over all their numbers."""
    flat = [x for row in rows for x in row]
    mean = fmean(flat)
    scale = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat) + 1e-8)
    return [[(x - mean) / scale + (mean if is_mean_kept else 0.0) for x in row] for row in rows]
