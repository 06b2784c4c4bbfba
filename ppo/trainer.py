"""PPO for a causal language model, one step after another.

    rollout → score → KL and advantages → update

:meth:`Trainer.rollout` and :meth:`Trainer.update` are the algorithm and can be called by hand; :meth:`Trainer.train`
loops over them, logs and saves. The parts live in their own modules; this one only knows their order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .actor_critic import ActorCritic, Evaluation, checkpointed_layers
from .advantages import estimate_advantages, shape_rewards
from .buffer import RolloutBuffer
from .checkpoint import run_state as persistence
from .checks.checks import check_rollout
from .collector import Responses, respond
from .config import Config
from .distributed.processes import Processes
from .distributed.sharding import readable, shard
from .kl import estimate_kl, make_controller
from .lm.backbone import context_length, end_ids, vocabulary_size
from .lm.frozen_blocks import find_frozen_blocks, train_top
from .lm.load import load_model
from .lm.precision import autocast, statistics_dtype
from .log.run_log import HEADLINE, RunLog, headline
from .losses import explained_variance
from .metrics import Averages, rollout_metrics
from .minibatch import exceeds, learn_from
from .optim.optimizer import Optimizer
from .prompts import Prompt, PromptStream, check_lengths, read_prompts
from .reference import freeze, make_reference, resolve_adapter
from .retain import make_retain_loss
from .run.determinism import reproducible
from .run.interrupt import deferred_interrupts
from .run.limits import Limits
from .scoring import Scorer
from .trace import Trace, trace_update
from .trace.recorder import Recorder
from .types import Generation, Reference, RewardFn, Rollout, Sample

Probe = Callable[["Trainer"], Mapping[str, float]]
"""Asked after every step for more metrics, such as an evaluation every few steps (else an empty dict)."""

StopRule = Callable[[Mapping[str, float]], bool]
"""Shown every step's metrics, the probe's among them; True ends the training."""


class Trainer:
    """Trains a causal LM by PPO against a reward function.

    model      hub id, local folder, or a loaded causal LM (trained in place)
    prompts    strings, token ids, or dicts with "prompt" (either of the two) and whatever else the reward needs
    reward     ``list[Sample] -> [B]`` scores or ``[B][T]`` token rewards
    config     every knob; see :class:`ppo.Config`
    tokenizer  of a loaded model; without one, prompts are token ids and ``Sample.text`` is ""
    reference  what KL is measured against: None (a frozen copy of the model as it is now), a
               :class:`ppo.types.Reference`, or a function ``(generation, samples) -> [B, T]`` log-probs
    retain     texts (strings or token ids) for ``config.retain_coef``
    out        folder for metrics.jsonl, metrics.csv, samples.jsonl and checkpoints; None writes no files
    use_tensorboard  event files in ``out/tensorboard`` too; None: where the package tensorboard is installed

    Raises ValueError for whatever does not fit together, before any work is done.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        prompts: Sequence[Any],
        reward: RewardFn,
        config: Config | None = None,
        *,
        tokenizer: Any | None = None,
        reference: Reference | Callable[[Generation, Sequence[Sample]], Tensor] | None = None,
        retain: Sequence[Any] | None = None,
        out: str | Path | None = None,
        use_tensorboard: bool | None = None,
    ) -> None:
        self.config = config if config is not None else Config()
        self.processes = Processes.current()
        self.processes.check(self.config)
        self.model, self.tokenizer = load_model(model, tokenizer)
        if self.config.train_top_layers is not None:
            train_top(self.model, self.config.train_top_layers)
        self.config = resolve_adapter(self.model, self.config)
        self.frozen_blocks = find_frozen_blocks(self.model)
        self.scorer = Scorer(reward, self.config, dtype=statistics_dtype(next(self.model.parameters()).dtype))
        self.prompts = read_prompts(prompts, self.tokenizer)
        self.actor = ActorCritic(
            self.model,
            value_head=self.config.value_head if self.config.has_critic else None,
            is_head_detached=self.config.detach_value_head,
            frozen_blocks=self.frozen_blocks,
            seed=self.config.seed,
        )
        self.processes.copy_first(self.actor)
        self.sampling = replace(self.config.sampling(), eos_ids=end_ids(self.model))
        check_lengths(
            self.prompts,
            context=context_length(self.model),
            response_length=self.config.response_length,
            vocab_size=vocabulary_size(self.model),
        )
        self.out = Path(out) if out is not None else None
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.step = 0
        self.frozen = freeze(self.model, self.config, has_own_reference=reference is not None)
        self.reference = make_reference(reference, self.frozen, self.sampling, self.config, self.frozen_blocks)
        self.retain_loss = make_retain_loss(
            retain, self.tokenizer, self.model, self.frozen, self.config, self.generator
        )
        if self.config.sharding == "fsdp" and self.processes.count > 1:
            shard(self.actor, self.frozen)
        self.optimizer = Optimizer(self.actor.trained_parameters(), self.actor.value_parameter_names(), self.config)
        self.kl_controller = make_controller(self.config)
        self.stream = PromptStream(len(self.prompts), self.generator)
        self.limits = Limits.of(self.config)
        self.num_not_finite = 0  # updates running that were left out
        self.last_checkpoint: Path | None = None
        self._fresh: Rollout | None = None  # a rollout of the policy as it is
        self._use_tensorboard = use_tensorboard

    # ------------------------------------------------------------------ the loop

    def train(
        self,
        steps: int,
        *,
        probe: Probe | None = None,
        stop_when: StopRule | None = None,
        progress: bool = True,
        show: Mapping[str, str] = HEADLINE,
        known: Mapping[str, float] | None = None,
    ) -> None:
        """Run ``steps`` more steps. With ``out`` every step is logged, and saved every ``config.save_every_steps``
        and at the end.

        Of several processes the first one writes, shows the bar and asks ``stop_when``; all of them call ``probe``,
        and the first one's numbers count. ``show``: labels on the bar, and the metrics whose last values they name;
        ``known``: values of those from before the first step.

        Ctrl-C (or SIGTERM) lets the step finish, saves a checkpoint (with ``out``), says where, and raises
        KeyboardInterrupt; a second Ctrl-C ends at once, and the last checkpoint stands. Of several
        processes, one that an error leaves ignores SIGTERM: see :meth:`ppo.distributed.Processes.last_words`.
        """
        processes = self.processes
        with processes.together():
            persistence.finish_pruning(self)
            folder = self.out if processes.is_first else None
            log = RunLog(folder, first_step=self.step, use_tensorboard=self._use_tensorboard)
        is_silent = not progress or not processes.is_first
        end = self.step + steps
        bar = tqdm(range(self.step, end), desc="PPO", unit="step", disable=is_silent)
        newest = dict(known or {})
        bar.set_postfix(headline(show, newest))
        with closing(log), deferred_interrupts() as interrupt, processes.last_words():
            for step in bar:
                rollout = self.rollout()
                metrics = {**rollout.metrics, **self.update(rollout)}
                if probe is not None:
                    with processes.together(), self.reading(self.actor):
                        metrics |= probe(self)
                    metrics = processes.broadcast(metrics)
                with processes.together():
                    log.metrics(step, metrics)
                    log.samples(step, rollout)
                newest |= metrics
                bar.set_postfix(headline(show, newest))
                is_over = stop_when is not None and processes.first(partial(stop_when, metrics))
                is_saved = self.out is not None and self._is_to_be_saved(is_over or step == end - 1)
                if is_saved:
                    log.flush()
                    self.save_numbered()
                if processes.any(bool(interrupt)):  # asked last: one that comes while a checkpoint is written counts
                    self._end_interrupted(log, is_saved=is_saved)
                if is_over:
                    break
        if interrupt:  # in the last moments of the last step: as if it had come after it
            raise KeyboardInterrupt

    def _end_interrupted(self, log: RunLog, *, is_saved: bool) -> NoReturn:
        if self.out is not None:
            if not is_saved:
                log.flush()
                self.save_numbered()
            if self.processes.is_first:
                tqdm.write(f"interrupted; go on with Trainer.resume({str(self.last_checkpoint)!r}, …)")
        raise KeyboardInterrupt

    def _is_to_be_saved(self, is_last: bool) -> bool:
        every = self.config.save_every_steps
        return every > 0 and (is_last or self.step % every == 0)

    # ------------------------------------------------------------------ one step, first half

    @reproducible
    @torch.no_grad()
    def rollout(self) -> Rollout:
        """Sample responses to the next prompts, score them, and work out what each token is worth."""
        return self.appraise(respond(self, self._next_prompts()))

    @torch.no_grad()
    def appraise(self, answered: Responses) -> Rollout:
        """What each token of scored responses is worth: its reward after KL, its advantage, its return."""
        generation, old_logprobs, old_values = answered.generation, answered.old_logprobs, answered.old_values
        mask = generation.mask
        token_rewards = self.scorer.shape(answered.scores, answered.token_rewards, generation)
        kl = torch.zeros_like(old_logprobs)
        if answered.ref_logprobs is not None:
            kl = estimate_kl(old_logprobs, answered.ref_logprobs, estimator=self.config.kl_estimator)
        kl_coef = self.kl_controller.coef if self.config.kl_as == "reward" else 0.0
        rewards = shape_rewards(token_rewards, kl, mask, kl_coef=kl_coef)
        rewards, advantages, returns = estimate_advantages(rewards, old_values, mask, self.config)
        rollout = Rollout(
            generation, answered.samples, old_logprobs, old_values, answered.ref_logprobs,
            answered.scores.to(mask.device), kl, rewards, advantages, returns, token_rewards=token_rewards,
        )  # fmt: skip
        check_rollout(self, rollout)
        metrics = rollout_metrics(rollout, kl_coef=self.kl_controller.coef) | self.scorer.metrics() | answered.metrics
        self._fresh = replace(rollout, metrics=metrics)
        return self._fresh

    def _next_prompts(self) -> list[Prompt]:
        """Prompt-major: the samples of one prompt are adjacent."""
        indices = self.stream.take(self.config.prompts_per_step)
        return [self.prompts[i] for i in indices for _ in range(self.config.samples_per_prompt)]

    # ------------------------------------------------------------------ one step, second half

    @reproducible
    def update(self, rollout: Rollout, *, recorder: Recorder | None = None) -> dict[str, float]:
        """Several epochs of clipped policy and value updates on one rollout; ends early when KL says so.

        ``recorder``: looks on and changes nothing; see :meth:`trace`.

        Raises FloatingPointError after ``config.stop_after_skipped_updates`` gradients running that are not finite.
        """
        started = time.perf_counter()
        buffer, averages, gap = RolloutBuffer(self.generator), Averages(), None
        buffer.add(rollout if recorder is None else recorder.marked)
        with checkpointed_layers(self.actor) if self.config.gradient_checkpointing else nullcontext():
            for minibatch in self._epochs(buffer):
                lesson = learn_from(self, minibatch, recorder, is_fresh=rollout is self._fresh)
                self._fresh = None
                if gap is None:  # before the first optimiser step policy and old policy differ by rounding alone
                    gap = lesson.statistics["policy/log_ratio"]
                if lesson.skipped:
                    averages.count(lesson.skipped)
                    continue
                averages.add(lesson.statistics)
                if exceeds(lesson.statistics["policy/approx_kl"], self.config.stop_kl_per_token):
                    averages.count("update/stopped_early")
                    break
        self.kl_controller.update(float(rollout.kl.sum(dim=1).mean()), len(rollout))
        self.step += 1
        self.limits = Limits.smallest(self.processes.all_gather(self.limits))
        metrics = averages.means() | {"rollout/logprob_gap": gap or 0.0}
        if self.config.has_critic:
            metrics["value/explained_variance"] = explained_variance(
                rollout.old_values, rollout.returns, rollout.generation.mask
            )
        return metrics | {"time/update_s": time.perf_counter() - started}

    def trace(self, rollout: Rollout, rows: Sequence[int] = (0,), *, top_k: int = 5, is_undone: bool = False) -> Trace:
        """:meth:`update`, to the same bits, with a record of all that happened to the tokens of some rows.

        ``rows``: which of the B responses to look at. ``top_k``: likeliest tokens at each position, before and after.
        ``is_undone`` puts everything back afterwards: weights, moments, generators, KL coefficient, step.
        """
        return trace_update(self, rollout, rows, top_k=top_k, is_undone=is_undone)

    def _epochs(self, buffer: RolloutBuffer) -> Iterator[Rollout]:
        for _ in range(self.config.epochs):
            yield from buffer.minibatches(self.config.minibatch)

    def evaluate(self, generation: Generation) -> Evaluation:
        """The policy and the critic as they are, asked about responses in the precision of the training."""
        chunk_tokens = self.config.logprob_chunk_tokens
        with self.precision():
            return self.actor.run(
                lambda: self.actor.evaluate(
                    generation,
                    self.sampling,
                    chunk_tokens=chunk_tokens,
                    has_entropy_gradient=self.config.entropy_coef != 0,
                )
            )

    def reading(self, model: nn.Module | None) -> AbstractContextManager[None]:
        """The context in which a model whose weights may be split can be called on every process; not for training."""
        return readable(model, self.processes, is_gathered=self.config.gather_for_rollouts)

    def precision(self) -> AbstractContextManager[Any]:
        """The context that the model is called in: autocast, or nothing."""
        return autocast(self.config.autocast, self.device)

    # ------------------------------------------------------------------ saving

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint that :meth:`resume` goes on from bit for bit; it appears whole or not at all.

        All of several processes must call it; the first one writes. It can be resumed on another number of them, to the
        same numbers within rounding.
        """
        self.last_checkpoint = persistence.save(self, Path(path))
        return self.last_checkpoint

    def save_numbered(self) -> Path:
        """Save under ``out/checkpoints/step-…`` and keep the newest ``config.keep_checkpoints``."""
        self.last_checkpoint = persistence.save_numbered(self)
        return self.last_checkpoint

    def save_model(self, path: str | Path) -> None:
        """Write the policy alone, also where its weights are split among processes.

        A plain Hugging Face folder; for a model with an adapter, its weights by name (merge it first for a plain one).
        """
        persistence.save_model(self, Path(path))

    @classmethod
    def resume(
        cls,
        path: str | Path,
        prompts: Sequence[Any],
        reward: RewardFn,
        *,
        model: nn.Module | None = None,
        tokenizer: Any | None = None,
        reference: Reference | Callable[[Generation, Sequence[Sample]], Tensor] | None = None,
        retain: Sequence[Any] | None = None,
        out: str | Path | None = None,
        device: str | None = None,
        use_tensorboard: bool | None = None,
    ) -> Trainer:
        """A trainer that goes on where :meth:`save` was called, to the same bits, given the same arguments as then.

        ``path``: a checkpoint, a folder of them, or a run's ``out``; the newest undamaged one is taken. ``model`` is
        needed only where the policy was no plain Hugging Face model (an adapter, say). Raises ValueError for a
        damaged checkpoint or for other prompts than those that were saved.
        """
        snapshot = persistence.load(Path(path), model, tokenizer, device)
        trainer = cls(
            snapshot.model,
            prompts,
            reward,
            snapshot.config,
            tokenizer=snapshot.tokenizer,
            reference=reference,
            retain=retain,
            out=out,
            use_tensorboard=use_tensorboard,
        )
        persistence.check_texts(trainer, snapshot)
        persistence.restore(trainer, snapshot)
        return trainer

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self.model.parameters()).device  # type: ignore[no-any-return]
