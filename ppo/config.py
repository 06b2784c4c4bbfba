"""Every knob of a run, as frozen and validated dataclasses with a JSON round trip.

A wrong value is a ``ValueError`` that names the field, the value and the remedy, before any work is done. A field has
its unit in its name where it has one. All knobs stand in this one file, flat, so that it is longer than 300 lines. It
knows nothing about models or tensors.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .io.fields import check_types, require
from .io.files import naming, read_json, write_json
from .io.visible import visible

AdvantageName = Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline"]
KLEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn: the distribution and when to stop.

    response_length      most new tokens per response
    min_response_length  EOS cannot be chosen before this many tokens
    temperature          divides the logits; 0 means greedy
    top_k                keep the k likeliest tokens; 0 keeps all
    top_p                keep the smallest set of tokens with at least this probability; 1 keeps all
    num_samples          responses per prompt
    eos_ids              token ids that end a response; None takes the model's own, () never stops
    """

    response_length: int = 50
    min_response_length: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    num_samples: int = 1
    eos_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        require(1 <= self.response_length < _MOST_TOKENS, self, "response_length", "must lie in [1, 2**31)")
        require(
            0 <= self.min_response_length <= self.response_length,
            self,
            "min_response_length",
            f"must lie between 0 and response_length={self.response_length}",
        )
        require(
            self.temperature == 0 or _LEAST_TEMPERATURE <= self.temperature <= 1 / _LEAST_TEMPERATURE,
            self,
            "temperature",
            f"must be 0 (greedy), or at least {_LEAST_TEMPERATURE:g} and at most {1 / _LEAST_TEMPERATURE:g}",
        )
        require(self.top_k >= 0, self, "top_k", "must be at least 0 (0 keeps all tokens)")
        require(0 < self.top_p <= 1, self, "top_p", "must lie in (0, 1]")
        require(self.num_samples >= 1, self, "num_samples", "must be at least 1")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Config:
    """One PPO run. Three batch words: ``prompts_per_step``, ``minibatch`` and ``microbatch``, all in sequences.

    A *step* is: sample ``prompts_per_step`` x ``samples_per_prompt`` responses, score them, then go ``epochs`` times
    over them in shuffled minibatches with one optimiser step each; a minibatch is computed in microbatches to save
    memory, which changes nothing in the gradient. With several processes the first two count over all of them,
    ``microbatch`` and ``rollout_slots`` are what one process computes at a time.
    """

    # Rollout
    prompts_per_step: int = 32  # prompts, over all processes
    samples_per_prompt: int = 1  # responses to each prompt
    response_length: int = 50  # most new tokens of a response
    min_response_length: int = 0  # new tokens before a response may end
    temperature: float = 1.0  # divides the logits
    top_k: int = 0  # sample from the k likeliest tokens; 0: from all
    top_p: float = 1.0  # sample from the fewest tokens with this probability together; 1: from all
    redraw_rounds: int = 0  # most rounds in which groups of equal scores give way to other prompts (DAPO); 0: they stay
    rollout_slots: int = 64  # sequences decoded side by side
    compiled_rollout: bool = False  # decode by torch.compile; meant for CUDA, untested there (docs/performance.md)
    kept_sets: Literal["recompute", "replay"] = "recompute"  # in the update: top-k/top-p of the new or the old policy
    old_logprobs: Literal["rollout", "recompute"] = "rollout"  # "recompute" asks the training forward once more

    # Score and reward
    scale_scores: bool = False  # divide by the running standard deviation
    clip_scores: float | None = None  # to [-c, c], after scaling
    missing_eos_penalty: float = 0.0  # subtracted, after scaling and clipping, from a response without EOS
    overlong_penalty: float = 0.0  # charged for the greatest length; within overlong_tokens of it, in proportion (DAPO)
    overlong_tokens: int = 0  # the last tokens of response_length, in which overlong_penalty grows from 0
    whiten_rewards: bool = False  # unit variance over the step's tokens, mean kept

    # KL penalty
    kl_coef: float = 0.2  # the price of a nat of KL to the reference
    kl_estimator: KLEstimator = "k1"  # of a token's KL (docs/algorithm.md)
    kl_as: Literal["reward", "loss"] = "reward"  # where the KL penalty acts
    kl_controller: Literal["fixed", "adaptive"] = "adaptive"  # "adaptive" moves kl_coef towards the target
    target_kl_per_sequence: float = 6.0  # nats, summed over a response
    kl_horizon_sequences: int = 10_000  # the adaptive controller moves slower the larger this is

    # Reference: the model as it is at the start, unless the Trainer is given one
    reference_adapter: Literal["auto", "off", "snapshot"] = "auto"  # of a model with one; auto: off if it does nothing
    reference_dtype: Literal["same", "bfloat16"] = "same"  # of a frozen copy; bfloat16 halves its memory
    reference_batch_tokens: int = 8192  # padded prompt+response tokens that pass the reference at once

    # Advantages
    advantage: AdvantageName = "gae"  # the estimator (docs/algorithm.md)
    gamma: float = 1.0  # discount for each token, in GAE
    gae_lambda: float = 0.95  # 0 trusts the critic, 1 the returns alone
    value_gae_lambda: float | None = None  # of the critic's returns (VAPO: 1); none: gae_lambda
    gae_length_alpha: float | None = None  # the policy's lambda: 1 - 1/(alpha x actions) (VAPO: 0.05); none: gae_lambda
    whiten_advantages: bool = True  # GAE's: mean 0, variance 1 over the step's tokens

    # Critic
    value_head: Literal["linear", "mlp", "critic", "none"] = "linear"  # "critic": a separate copy of the model
    detach_value_head: bool = False  # the value loss does not reach the policy's weights
    value_coef: float = 0.1  # weight of the value loss
    value_clip: float | None = 0.2  # how far a value may move from the old one; none: any distance
    critic_warmup_steps: int = 0  # first steps, in which the critic learns and the policy waits

    # Update
    epochs: int = 4  # passes over the responses of a step
    minibatch: int = 32  # sequences for each optimiser step, over all processes
    microbatch: int | None = None  # sequences that one process computes at once; none: the whole minibatch
    microbatch_tokens: int | None = None  # instead of microbatch: a budget of padded prompt+response tokens
    policy_loss: Literal["clip", "gspo", "cispo", "reinforce"] = "clip"  # docs/algorithm.md says what each is
    policy_clip: float = 0.2  # how far a token's ratio may leave 1; with gspo a response's, which moves far less
    policy_clip_high: float | None = None  # how far the ratio may go above 1; none: policy_clip
    policy_dual_clip: float | None = None  # the ratio from which an advantage below 0 pushes no harder
    loss_mean: Literal["tokens", "sequences", "sequence_sums", "constant"] = "tokens"  # policy, entropy and KL losses
    mask_overlong: bool = False  # a response that did not end by itself is not trained on (DAPO)
    positive_coef: float = 0.0  # weight of the language-model loss on responses that scored high (VAPO)
    positive_score: float = 0.0  # the raw score above which a response counts as one of them
    entropy_coef: float = 0.0  # weight of the entropy bonus, for a nat
    max_mean_ratio: float | None = 10.0  # a minibatch above it is skipped
    stop_kl_per_token: float | None = None  # k3 to the old policy; above it the step ends early
    max_grad_norm: float | None = 1.0  # gradients are scaled down to this norm; none: never

    # Off-policy: what another engine, precision or older weights sampled
    importance: Literal["off", "token", "sequence"] = "off"  # weight the policy loss by training / sampler probability
    importance_cap: float | None = 2.0  # the largest such ratio; none: any
    importance_beyond: Literal["truncate", "mask"] = "truncate"  # what a ratio above the cap becomes: the cap, or 0

    # Retain text mixed into the update (PPO-ptx)
    retain_coef: float = 0.0  # weight of the loss on text to keep
    retain_loss: Literal["lm", "kl"] = "lm"  # NLL of the text, or KL to the model at the start
    retain_sequences: int = 8  # texts to keep in each minibatch
    retain_tokens: int = 128  # length of a retain sequence

    # Optimiser
    learning_rate: float = 1.41e-5  # Adam's, at its peak
    value_learning_rate: float | None = None  # of the critic; none: learning_rate
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # of the learning rates
    warmup_steps: int = 0  # steps in which the learning rates rise from 0
    total_steps: int | None = None  # where linear and cosine reach 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    adam_eps_style: Literal["torch", "tensorflow"] = "torch"
    weight_decay: float = 0.0  # AdamW's
    moment_dtype: Literal["float32", "bfloat16"] = "float32"  # Adam's moments; bfloat16 halves their memory

    # Memory and precision
    train_top_layers: int | None = None  # those below are frozen, shared with the reference, run once (in one process)
    autocast: Literal["off", "bfloat16"] = "off"  # bfloat16: matrix products in bfloat16, weights stay as they are
    gradient_checkpointing: bool = False  # compute forwards twice, to hold less in memory
    logprob_chunk_tokens: int = 1024  # tokens that pass the output layer at once

    # Several processes (torchrun)
    sharding: Literal["none", "fsdp"] = "none"  # 'fsdp' splits weights, gradients and moments among the processes
    gather_for_rollouts: bool = True  # with "fsdp"; False: a block at a time there too, for what fits no device; slow

    # What goes wrong
    checks: Literal["on", "off"] = "on"  # "off": rollouts and first minibatches are not looked at
    max_logprob_gap_nats: float | None = None  # of a row's mean to training's, a token; none: 0.005, bfloat16 0.3
    stop_after_skipped_updates: int = 3  # skipped in a row, for a gradient that was not finite, before the run ends
    reward_timeout_seconds: float | None = None  # the longest that a reward may take; none: any time

    # Evaluation
    eval_every_steps: int = 0  # steps between two evaluations on the Trainer's eval_prompts; 0: only when asked
    best_metric: str | None = None  # the best step by it is kept in <out>/best: "eval/score_mean", any metric; none: no
    best_is: Literal["max", "min"] = "max"  # whether a larger or a smaller number of best_metric is better

    # Run
    seed: int = 0  # of every random draw
    deterministic: bool = False  # torch's deterministic algorithms: the same bits on repeat (docs/numerics.md)
    save_every_steps: int = 0  # steps between two checkpoints; 0: only when asked
    keep_checkpoints: int = 2  # the newest that are kept

    def __post_init__(self) -> None:
        check_types(self)
        self.sampling()  # the sampling fields are validated by Sampling
        for names, least in ((_AT_LEAST_ONE, 1), (_AT_LEAST_TWO, 2), (_NOT_NEGATIVE, 0)):
            for name in names:
                value = getattr(self, name)
                require(value is None or value >= least, self, name, f"must be at least {least}")
        for name in _POSITIVE:
            value = getattr(self, name)
            require(value is None or value > 0, self, name, "must be above 0")
        for name in ("gamma", "gae_lambda", "value_gae_lambda"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, self, name, "must lie in [0, 1]")
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, self, name, "must lie in [0, 1)")
        require(self.epochs <= _MOST_EPOCHS, self, "epochs", f"must be at most {_MOST_EPOCHS}")
        require(
            (self.reward_timeout_seconds or 0) <= _MOST_SECONDS, self, "reward_timeout_seconds",
            f"must be at most {_MOST_SECONDS}, or None for any time",
        )  # fmt: skip
        self._check_batches()
        self._check_overlong()
        self._check_policy_loss()
        self._check_combinations()

    def _check_batches(self) -> None:
        sequences = self.sequences_per_step
        for name, factor in (("samples_per_prompt", 1), ("prompts_per_step", self.samples_per_prompt)):
            most = _MOST_TOKENS // (self.response_length * factor)
            require(
                getattr(self, name) <= most, self, name,
                f"must be at most {most}: a step must have fewer than {_MOST_TOKENS} new tokens in all",
            )  # fmt: skip
        require(
            sequences % self.minibatch == 0,
            self,
            "minibatch",
            f"must divide prompts_per_step x samples_per_prompt = {sequences}",
        )
        require(
            self.retain_sequences * self.retain_tokens < _MOST_TOKENS, self, "retain_sequences",
            f"times retain_tokens={self.retain_tokens} must be below {_MOST_TOKENS}",
        )  # fmt: skip
        if self.microbatch is not None:
            require(
                self.minibatch % self.microbatch == 0, self, "microbatch", f"must divide minibatch={self.minibatch}"
            )
            require(
                self.microbatch_tokens is None, self, "microbatch_tokens", "give either microbatch or microbatch_tokens"
            )

    def _check_overlong(self) -> None:
        require(
            (self.overlong_penalty > 0) == (self.overlong_tokens > 0), self, "overlong_tokens",
            f"goes with overlong_penalty={self.overlong_penalty}: set both above 0, or neither",
        )  # fmt: skip
        require(
            self.overlong_tokens <= self.response_length, self, "overlong_tokens",
            f"must not exceed response_length={self.response_length}",
        )  # fmt: skip

    def _check_policy_loss(self) -> None:
        high, dual, loss = self.policy_clip_high, self.policy_dual_clip, self.policy_loss
        require(dual is None or dual > 1, self, "policy_dual_clip", "must be above 1: it bounds a ratio above 1")
        require(
            high is None or loss != "reinforce", self, "policy_clip_high",
            "must be None for policy_loss='reinforce', which has no ratio to clip",
        )  # fmt: skip
        require(
            dual is None or loss == "clip", self, "policy_dual_clip",
            f"must be None for policy_loss={loss!r}: only 'clip' has a second bound",
        )  # fmt: skip

    def _check_combinations(self) -> None:
        require(
            self.redraw_rounds == 0 or self.samples_per_prompt >= 2, self, "redraw_rounds",
            "needs samples_per_prompt of at least 2: it compares the scores of one prompt's samples",
        )  # fmt: skip
        if self.compares_samples:
            require(
                self.samples_per_prompt >= 2,
                self,
                "samples_per_prompt",
                f"must be at least 2 for advantage={self.advantage!r}, which compares the samples of one prompt",
            )
        for name in ("value_gae_lambda", "gae_length_alpha"):
            why = f"advantage={self.advantage!r}" if self.advantage != "gae" else f"value_head={self.value_head!r}"
            require(
                self.has_critic or getattr(self, name) is None,
                self,
                name,
                f"must be None for {why}: GAE needs a critic",
            )
        require(
            self.kept_sets == "recompute" or self.top_k > 0 or self.top_p < 1,
            self,
            "kept_sets",
            "needs top_k or top_p: without a filter all tokens are kept",
        )
        require(
            self.importance == "off" or self.old_logprobs == "recompute",
            self,
            "importance",
            "needs old_logprobs='recompute': it compares the training forward with the sampler",
        )
        if self.critic_warmup_steps > 0:
            require(
                self.has_critic and self.value_coef > 0,
                self,
                "critic_warmup_steps",
                "needs a critic that learns: advantage='gae', a value_head, and value_coef above 0; or leave it at 0",
            )
        if self.schedule != "constant":
            require(
                self.total_steps is not None and self.total_steps > self.warmup_steps,
                self,
                "total_steps",
                f"must be given and exceed warmup_steps={self.warmup_steps} for schedule={self.schedule!r}",
            )
        require(
            self.kl_as == "reward" or self.kl_estimator != "k1",
            self,
            "kl_estimator",
            "must be 'k2' or 'k3' for kl_as='loss': the gradient of k1 is 0 on average",
        )
        fifth = self.sequences_per_step / 5
        require(
            self.kl_controller == "fixed" or self.kl_coef == 0 or self.kl_horizon_sequences > fifth, self,
            "kl_horizon_sequences",
            f"must be above {fifth:g}, a fifth of a step's sequences: kl_coef could fall below 0",
        )  # fmt: skip
        require(
            self.gather_for_rollouts or self.sharding == "fsdp",
            self,
            "gather_for_rollouts",
            "needs sharding='fsdp': without it all weights are whole everywhere",
        )
        metric = self.best_metric
        require(
            metric is None or 0 < len(metric) <= _LONGEST_NAME, self, "best_metric",
            f"must be the name of a metric, such as 'eval/score_mean', of {_LONGEST_NAME} characters at most, or None",
        )  # fmt: skip
        require(
            metric is None or not metric.startswith("eval/") or self.eval_every_steps > 0,
            self,
            "best_metric",
            "needs eval_every_steps above 0: without it no step is evaluated",
        )
        require(self.temperature > 0, self, "temperature", "must be above 0: a greedy policy has no gradient")

    @property
    def sequences_per_step(self) -> int:
        """B of one step."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def policy_clip_up(self) -> float:
        """How far the ratio may go above 1; ``policy_clip`` is how far it may go below."""
        return self.policy_clip if self.policy_clip_high is None else self.policy_clip_high

    @property
    def has_critic(self) -> bool:
        """Of the advantages only GAE needs a value function, and an own estimator may do without."""
        return self.advantage == "gae" and self.value_head != "none"

    @property
    def compares_samples(self) -> bool:
        """Whether advantages compare the samples of one prompt."""
        return self.advantage not in ("gae", "reinforce++")

    @property
    def critic_lambda(self) -> float:
        """lambda of the returns that the critic learns."""
        return self.gae_lambda if self.value_gae_lambda is None else self.value_gae_lambda

    def sampling(self) -> Sampling:
        """The distribution that rollouts are drawn from, one response per given prompt."""
        return Sampling(
            response_length=self.response_length,
            min_response_length=self.min_response_length,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Build a Config; an unknown key is an error that names its nearest neighbour."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
                raise ValueError(f"unknown config key {key!r:.80}{hint}")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Read JSON; errors name the file."""
        values = read_json(Path(path), max_bytes=_MAX_BYTES)
        if not isinstance(values, dict):
            kind = type(values).__name__
            raise ValueError(f"{visible(str(path))} is not a JSON config: it holds a {kind}, not an object")
        with naming(Path(path)):
            return cls.from_dict(values)

    def replace(self, **changes: Any) -> Config:
        """A copy with some fields changed, validated again; unknown keys are errors."""
        return Config.from_dict({**self.to_dict(), **changes})


_MAX_BYTES = 2**20  # of a file that holds one
_MOST_TOKENS = 2**31  # of the responses of a step: no machine that samples holds more
_LONGEST_NAME = 200
_LEAST_TEMPERATURE = 1e-8  # by a smaller one a logit may become infinite
_MOST_EPOCHS = 10_000
_MOST_SECONDS = 10**9  # 30 years: what the system's clocks can wait for
_AT_LEAST_ONE = (
    "prompts_per_step", "samples_per_prompt", "rollout_slots", "kl_horizon_sequences", "epochs", "minibatch",
    "microbatch", "microbatch_tokens", "retain_sequences", "logprob_chunk_tokens", "total_steps", "keep_checkpoints",
    "reference_batch_tokens", "train_top_layers", "stop_after_skipped_updates",
)  # fmt: skip
_AT_LEAST_TWO = ("retain_tokens",)
_NOT_NEGATIVE = (
    "kl_coef", "value_coef", "entropy_coef", "retain_coef", "warmup_steps", "weight_decay", "seed", "save_every_steps",
    "missing_eos_penalty", "critic_warmup_steps", "redraw_rounds", "overlong_penalty", "overlong_tokens",
    "positive_coef", "eval_every_steps",
)  # fmt: skip
_POSITIVE = (
    "clip_scores", "target_kl_per_sequence", "value_clip", "policy_clip", "policy_clip_high", "max_mean_ratio",
    "stop_kl_per_token", "max_grad_norm", "learning_rate", "value_learning_rate", "adam_eps", "max_logprob_gap_nats",
    "reward_timeout_seconds", "gae_length_alpha", "importance_cap",
)  # fmt: skip
