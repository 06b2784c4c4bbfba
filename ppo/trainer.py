"""PPO for a causal language model, one step after another.

    rollout → score → KL and advantages → update

:meth:`Trainer.rollout` and :meth:`Trainer.update` are the algorithm and can be called by hand; :meth:`Trainer.train`
loops over them, logs and saves. The parts live in their own modules; this one only knows their order. All that people
call stands here in one class, with its documentation: that is why the file is longer than 300 lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .advantages import advantage_of, shape_rewards, whiten
from .buffer import RolloutBuffer
from .checkpoint.best import Best
from .checkpoint.folder import check_replaceable
from .checkpoint.run_state import Counters, RunState
from .checkpoint.snapshot import check_own, read_snapshot
from .checkpoint.weights import restore_value
from .checks.checks import Checks
from .checks.dump import Dumps
from .checks.seams import (
    SEAMS,
    check_callables,
    check_config,
    check_seams,
    checked_advantage,
    checked_policy_loss,
    checked_sampler,
    names_of,
)
from .collector import Collector
from .config import Config, Sampling
from .distributed.processes import Processes
from .distributed.sharding import shard
from .draws import Draws
from .evaluation.evaluator import Evaluator, check_evaluation, sampling_of
from .generation.sampling import BrokenLogitsError
from .importance import importance_weights
from .io.console import shown_errors
from .io.plain import is_whole
from .io.special import check_special_tokens
from .kl import KLPenalty
from .learner import Learner
from .lm.backbone import context_length, end_ids, vocabulary_size
from .lm.device import device_of, move, resolve_for
from .lm.frozen_blocks import train_top
from .lm.load import check_trainable, load_model
from .lm.precision import statistics_dtype
from .log.run_log import HEADLINE, RunLog, headline
from .losses import explained_variance
from .metrics import Averages, off_policy_metrics, rollout_metrics
from .optim.optimizer import Optimizer
from .policy import Policy
from .policy_losses import policy_loss_of
from .prompts import Prompt, PromptStream, check_lengths, read_prompts
from .reference import freeze, make_reference, resolve_adapter
from .retain import make_retain_loss, make_retain_texts
from .run.determinism import reproducible
from .run.interrupt import deferred_interrupts
from .sampler import sampler_of
from .scoring import Scorer
from .trace import StatesTold, Trace, trace_update
from .types import (
    AdvantageFn,
    Generation,
    Observer,
    OnStep,
    PolicyLoss,
    Reference,
    Responses,
    RewardFn,
    Rollout,
    Sample,
    Sampler,
    Step,
)  # fmt: skip

Probe = Callable[["Trainer"], Mapping[str, float]]
"""Called after every step; returns more metrics, or an empty dict where there is nothing to add."""

StopRule = Callable[[Mapping[str, float]], bool]
"""Called with every step's metrics, the probe's among them; True ends the training."""


class Trainer:
    """Trains a causal LM by PPO against a reward function.

    model      hub id ("owner/name", "owner/name@revision"), local folder, or a loaded causal LM (trained in place)
    prompts    strings, token ids, chat messages, or dicts with one of them as "prompt" and what else the reward needs;
               a ``datasets.Dataset`` of such rows; None: your loop brings responses (:func:`ppo.given.given_responses`)
    reward     ``list[Sample] -> [B]`` scores or ``[B][T]`` token rewards; None: your loop brings scores along
    config     every knob; see :class:`ppo.Config`
    tokenizer  of a loaded model; without one, prompts are token ids and ``Sample.text`` is ""
    reference  what KL is measured against: None (a frozen copy of the model as it is now), a
               :class:`ppo.types.Reference`, or a function ``(generation, samples) -> [B, T]`` log-probs
    eval_prompts  other prompts for :meth:`evaluate`; every ``config.eval_every_steps`` steps :meth:`train` calls it
    eval_sampling  how responses are drawn there; None: greedy, of ``config.response_length``
    retain     texts (strings, token ids or chat messages) for ``config.retain_coef``
    sampler    where responses come from (:mod:`ppo.sampler`); None: the policy itself
    advantage  what each token was worth (``ppo.types.AdvantageFn``); None: as the config says
    policy_loss  the policy's loss (``ppo.types.PolicyLoss``); None: the one of the config
    value      an own critic: a module ``(input_ids [B, S], attention_mask [B, S]) -> [B, S]``, V before the next token;
               or a folder: the config's critic starts from the weights that :meth:`save_value` or a checkpoint wrote
    out        folder for metrics.jsonl, metrics.csv, samples.jsonl and checkpoints; None writes no files
    device     "auto" (the accelerator that torch.accelerator names, else the CPU), "cpu", "cuda", "cuda:1", "mps", … or
               a torch.device (:mod:`ppo.lm.device`). None: "auto" for a name or a folder; a loaded model stays where it
               is. A loaded model is moved in place, and so is an own critic, which goes where the model is. Under
               torchrun each process takes its own
    dtype      of the weights of a name or a folder: "float32" (None), "bfloat16", … or torch's. A loaded model keeps
               its own, and another one is an error
    use_tensorboard  event files in ``out/tensorboard`` too; None: where the package tensorboard is installed

    Raises ValueError for whatever does not fit together, before any work is done.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        prompts: Sequence[Any] | None = None,
        reward: RewardFn | None = None,
        config: Config | None = None,
        *,
        tokenizer: Any | None = None,
        reference: Reference | Callable[[Generation, Sequence[Sample]], Tensor] | None = None,
        retain: Sequence[Any] | None = None,
        sampler: Sampler | None = None,
        advantage: AdvantageFn | None = None,
        policy_loss: PolicyLoss | None = None,
        value: nn.Module | str | Path | None = None,
        eval_prompts: Sequence[Any] | None = None,
        eval_sampling: Sampling | None = None,
        out: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        use_tensorboard: bool | None = None,
    ) -> None:
        config = config if config is not None else Config()
        check_config(config)
        check_callables({"reward": reward, "reference": reference})
        self.processes = Processes.current()
        self.processes.check(config)
        own = {"sampler": sampler, "advantage": advantage, "policy_loss": policy_loss, "value": value}
        check_seams(own, config)
        critic = value if isinstance(value, nn.Module) else None
        check_evaluation(config, eval_prompts, eval_sampling, reward)
        place, is_split = resolve_for(model, device), config.sharding == "fsdp" and self.processes.count > 1
        loaded, self.tokenizer = load_model(model, tokenizer, device=None if is_split else place, dtype=dtype)
        if critic is not None:
            move(critic, device_of(loaded))
        if config.train_top_layers is not None:
            train_top(loaded, config.train_top_layers)
        check_trainable(loaded)
        self.config = config = resolve_adapter(loaded, config)
        self.out = Path(out) if out is not None else None
        self.generator = torch.Generator().manual_seed(config.seed)
        self.scorer = Scorer(reward, config, dtype=statistics_dtype(next(loaded.parameters()).dtype))
        check_special_tokens(self.tokenizer, end_ids(loaded), vocab_size=vocabulary_size(loaded))
        self.prompts = _read_prompts(prompts, self.tokenizer, loaded, config.sampling())
        eval_sampling = eval_sampling if eval_sampling is not None else sampling_of(config)
        held_out = _read_prompts(eval_prompts, self.tokenizer, loaded, eval_sampling, name="eval_prompt")
        self.stream = PromptStream(len(self.prompts), self.generator)
        self.policy = Policy.of(loaded, config, self.processes, critic=critic, has_own_loss=policy_loss is not None)
        if isinstance(value, str | Path):
            restore_value(self.policy, Path(value))
        frozen = freeze(loaded, config, has_own_reference=reference is not None)
        draw = checked_sampler(sampler, loaded) if sampler is not None else sampler_of(config)
        self._evaluator = Evaluator(
            self.policy, draw, self.scorer, held_out, eval_sampling, seed=config.seed, tokenizer=self.tokenizer
        )
        self.collector = Collector(
            self.policy,
            draw,
            self.scorer,
            make_reference(
                reference, frozen, self.policy.sampling, config, self.policy.actor.frozen_blocks, policy=loaded
            ),
            reference_model=self.policy.actor if frozen is loaded else frozen,
            generator=self.generator,
            tokenizer=self.tokenizer,
        )
        self._draws = Draws(self.collector, self.prompts, self.stream, config)
        retain_texts = make_retain_texts(retain, self.tokenizer, loaded, config, self.generator)
        retain_loss = make_retain_loss(frozen, config)
        if is_split:
            shard(self.policy.actor, frozen, place)
        actor = self.policy.actor
        optimizer = Optimizer(actor.trained_parameters(), actor.value_parameter_names(), config)
        self.kl = KLPenalty.of(config)
        own["value"] = critic  # a folder gave weights to the library's own
        self.state = RunState(
            config, self.policy, frozen, optimizer, self.kl, self.scorer, self.prompts, self.stream, retain_texts,
            self.generator, Counters(), self.tokenizer, names_of(own), Best.of(config),
        )  # fmt: skip
        self.checks = Checks(
            self.policy, config, Dumps(self.out, self.state.save, self.processes),
            own_sampler=self.state.own.get("sampler", ""),
        )  # fmt: skip
        self.learner = Learner(
            self.policy, optimizer, self.kl, config,
            policy_loss=checked_policy_loss(policy_loss) if policy_loss is not None else policy_loss_of(config),
            checks=self.checks, counters=self.state.counters, retain_loss=retain_loss, retain_texts=retain_texts,
            has_own_parts=policy_loss is not None or critic is not None,
        )  # fmt: skip
        self._advantage = checked_advantage(advantage) if advantage is not None else advantage_of(config)
        self._use_tensorboard = use_tensorboard

    # ------------------------------------------------------------------ one step, first half

    @reproducible
    @torch.no_grad()
    def rollout(self) -> Rollout:
        """Sample responses to the next prompts, score them, and work out what each token is worth."""
        return self.appraise(self._draws.responses(step=self.step, policy_version=self.learner.num_updates))

    @torch.no_grad()
    def appraise(self, responses: Responses) -> Rollout:
        """What each token of scored responses is worth: its reward after KL, its advantage, its return.

        Call it once for each set of responses: the scorer's running moments move. Raises CheckError for a rollout
        that cannot be right.
        """
        generation, old_values = responses.generation, responses.old_values
        mask = generation.action_mask
        if generation.context is not None and "advantage" not in self.state.own:
            raise ValueError(
                f"Config.advantage={self.config.advantage!r} follows a response from token to token, and actions at "
                "forced states (Generation.context) lead nowhere: give advantage=, a function of your own"
            )
        token_rewards = self.scorer.shape(responses.scores, responses.raw_token_rewards, generation)
        kl = self.kl.per_token(responses.old_logprobs, responses.ref_logprobs)
        rewards = shape_rewards(token_rewards, kl, mask, kl_coef=self.kl.reward_coef)
        if self.config.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        with self.processes.together():
            advantages, returns = self._advantage(rewards, old_values, mask, responses.samples)
        if "advantage" in self.state.own:  # it may draw numbers of its own
            advantages, returns = self.processes.of_first(advantages), self.processes.of_first(returns)
        rollout = Rollout(
            generation, responses.samples, responses.old_logprobs, old_values, responses.ref_logprobs,
            responses.scores.to(mask.device), kl, rewards, advantages, returns, token_rewards=token_rewards,
            policy_version=responses.policy_version, importance_weights=self._importance_weights(responses),
        )  # fmt: skip
        self.checks.rollout(rollout, step=self.step, is_given=responses.is_given)
        metrics = rollout_metrics(rollout, kl_coef=self.kl.coef) | self.scorer.metrics() | responses.metrics
        off_policy = off_policy_metrics(rollout, self.config, is_compared=responses.is_compared)
        return replace(rollout, metrics=metrics | off_policy)

    def _importance_weights(self, responses: Responses) -> Tensor | None:
        """What corrects the difference between sampler and training forward, [B, T], if the config asks for it."""
        config, generation = self.config, responses.generation
        if config.importance == "off":
            return None
        return importance_weights(
            responses.old_logprobs, generation.logprobs, generation.action_mask, level=config.importance,
            cap=config.importance_cap, beyond=config.importance_beyond,
        )  # fmt: skip

    # ------------------------------------------------------------------ one step, second half

    @reproducible
    def update(self, rollout: Rollout, *, observer: Observer | None = None) -> dict[str, float]:
        """Several epochs of policy and value updates on one rollout.

        It stops early when the KL to the old policy exceeds ``config.stop_kl_per_token``.

        ``observer``: looks on and changes nothing; see :meth:`trace`.

        Raises FloatingPointError after ``config.stop_after_skipped_updates`` gradients in a row that are not finite,
        and where weights or moments are not finite afterwards; ValueError for a rollout without the importance weights
        that the config asks for.
        """
        if (self.config.importance == "off") != (rollout.importance_weights is None):
            found = "no importance_weights" if rollout.importance_weights is None else "importance_weights"
            raise ValueError(f"the rollout has {found}, but Config.importance={self.config.importance!r}: appraise it")
        started = time.perf_counter()
        averages, gap = Averages(), None
        with self.policy.training(), torch.enable_grad():
            for minibatch in self._minibatches(rollout):
                result = self.learner.step(minibatch, step=self.step, observer=observer)
                if gap is None and not result.is_empty:  # before the first optimiser step it is rounding alone
                    gap = result.log_ratio
                if result.skipped:
                    averages.count(result.skipped)
                    continue
                averages.add(result.statistics)
                if result.moved_too_far(self.config.stop_kl_per_token):
                    averages.count("update/stopped_early")
                    break
        self.state.check_sound()
        if not self.learner.is_policy_waiting:  # a policy that does not move says nothing about the coefficient
            self.kl.update(rollout.kl)
        self.state.end_step()
        metrics = averages.means() | {"rollout/logprob_gap": gap or 0.0}
        if self.config.has_critic:
            metrics["value/explained_variance"] = explained_variance(
                rollout.old_values, rollout.returns, rollout.generation.action_mask
            )
        return metrics | {"time/update_s": time.perf_counter() - started}

    def _minibatches(self, rollout: Rollout) -> Iterator[Rollout]:
        """All epochs, each shuffled when it begins."""
        buffer = RolloutBuffer(self.generator)
        buffer.add(rollout)
        for _ in range(self.config.epochs):
            yield from buffer.minibatches(self.config.minibatch)

    def trace(
        self,
        rollout: Rollout,
        rows: Sequence[int] = (0,),
        *,
        top_k: int = 5,
        is_undone: bool = False,
        told: StatesTold | None = None,
    ) -> Trace:
        """:meth:`update`, to the same bits, with a record of all that happened to the tokens of some rows.

        ``rows``: which of the B responses to look at. ``top_k``: likeliest tokens at each position, before and after.
        ``is_undone`` puts everything back afterwards: weights, moments, generators, KL coefficient, step. Of an
        ``advantage`` of your own it shows what the function returned, and no formula. Tokens that an environment wrote
        are shown in their places without numbers. At forced states each action of a state is shown once, with how often
        it was drawn. ``told``: what you know of these states and the library does not (:mod:`ppo.trace.states`).
        """
        with self.state.undone() if is_undone else nullcontext():
            return trace_update(
                self.policy, self.update, rollout, rows, config=self.config, step=self.step, kl_coef=self.kl.coef,
                tokenizer=self.tokenizer, top_k=top_k, has_own_loss="policy_loss" in self.state.own,
                own_advantage=self.state.own.get("advantage", ""), told=told or StatesTold(),
            )  # fmt: skip

    # ------------------------------------------------------------------ evaluation

    @reproducible
    def evaluate(self) -> dict[str, float]:
        """The policy on ``eval_prompts``: raw scores, lengths, shares (:mod:`ppo.evaluation.evaluator`), and seconds.

        Nothing of the run moves. All processes must call this. Raises ValueError without ``eval_prompts``.
        """
        return self._evaluator(step=self.step)

    def _due_evaluation(self, *, is_last: bool) -> dict[str, float]:
        every = self.config.eval_every_steps
        return self.evaluate() if every > 0 and (is_last or self.step % every == 0) else {}

    def _first_evaluation(self) -> dict[str, float]:
        """The policy before its first step, as ``eval_start/…`` beside the numbers of that step."""
        if self.step > 0 or self.config.eval_every_steps == 0:
            return {}
        return {name.replace("eval", "eval_start", 1): value for name, value in self.evaluate().items()}

    # ------------------------------------------------------------------ the loop

    def train(
        self,
        steps: int,
        *,
        probe: Probe | None = None,
        stop_when: StopRule | None = None,
        on_step: OnStep | None = None,
        progress: bool = True,
        show: Mapping[str, str] = HEADLINE,
        known: Mapping[str, float] | None = None,
    ) -> None:
        """Run ``steps`` more steps. With ``out`` every step is logged, and saved every ``config.save_every_steps``
        and at the end. :meth:`evaluate` is called every ``config.eval_every_steps``, at the end, and before the first
        step. With ``out`` the best step by ``config.best_metric`` is kept in ``out/best``.

        ``probe`` adds numbers to a step, ``on_step`` looks at it once its lines are written, ``stop_when`` decides
        whether it was the last. With several processes the first one writes, shows the bar and calls ``on_step`` and
        ``stop_when``; all of them call ``probe``, and the first one's numbers count. ``show``: labels on the bar, and
        the metrics whose last values they name; ``known``: their values before the first step.

        Ctrl-C (or SIGTERM) lets the step finish, saves a checkpoint (with ``out``), says where, and raises
        KeyboardInterrupt; a second Ctrl-C ends at once, and the last checkpoint stands. With several processes, a
        process that fails ignores SIGTERM from then on, so that its error is still printed.
        """
        check_callables({"on_step": on_step, "probe": probe, "stop_when": stop_when})
        if not is_whole(steps) or steps < 0:
            raise ValueError(f"steps={steps!r:.60} must be a whole number from 0 on: how many more to run")
        processes = self.processes
        with processes.together():
            folder = self.out if processes.is_first else None
            log = RunLog(folder, first_step=self.step, use_tensorboard=self._use_tensorboard)
            if self.out is not None:
                self.state.finish_pruning(self.out / "checkpoints")
        is_silent = not progress or not processes.is_first
        end = self.step + steps
        bar = tqdm(range(self.step, end), desc=f"PPO on {self.device}", unit="step", disable=is_silent)
        newest = dict(known or {})
        bar.set_postfix(headline(show, newest))
        with closing(log), deferred_interrupts() as interrupt, processes.last_words(), self._naming_step():
            start = self._first_evaluation() if steps > 0 else {}
            for step in bar:
                rollout = self.rollout()
                metrics = {**start, **rollout.metrics, **self.update(rollout)}
                metrics |= self._due_evaluation(is_last=step == end - 1)
                start = {}
                if probe is not None:
                    with processes.together(), self.policy.readable():
                        metrics |= probe(self)
                    metrics = processes.broadcast(metrics)
                is_best = self._is_best(metrics, step, is_complete=probe is None)
                if self.state.best is not None:
                    metrics |= self.state.best.metrics()
                with processes.together():
                    log.metrics(step, metrics)
                    log.samples(step, rollout)
                    if on_step is not None and processes.is_first:
                        on_step(Step(step, rollout, dict(metrics)))
                newest |= metrics
                bar.set_postfix(headline(show, newest))
                is_over = stop_when is not None and processes.first(partial(stop_when, metrics))
                if self.out is not None and is_best:  # before the numbered one, which counts on it
                    log.flush()
                    self._saved(self.state.save(self.out / "best"))
                is_saved = self.out is not None and self._is_to_be_saved(is_over or step == end - 1)
                if is_saved:
                    log.flush()
                    self.save_numbered()
                if processes.any(bool(interrupt)):  # asked last: one that comes while a checkpoint is written counts
                    self._end_interrupted(log, is_saved=is_saved)
                if is_over:
                    break
        if self.state.best is not None and steps > 0 and processes.is_first:
            self.state.best.warn_if_unseen()
        if interrupt:  # Ctrl-C after the last check counts as one after the step
            raise KeyboardInterrupt

    @contextmanager
    def _naming_step(self) -> Iterator[None]:
        """Within the context logits that a training has broken are told with the step, and with what to do."""
        try:
            yield
        except BrokenLogitsError as error:
            if self.step == 0:  # the model came so
                raise
            at = f"go on from {self.last_checkpoint}" if self.last_checkpoint is not None else "start again"
            text = f"step {self.step}: {error}; {at}, with a lower learning rate or with max_grad_norm"
            raise BrokenLogitsError(text) from error

    def _end_interrupted(self, log: RunLog, *, is_saved: bool) -> NoReturn:
        if self.out is not None:
            if not is_saved:
                log.flush()
                self.save_numbered()
            if self.processes.is_first:
                tqdm.write(f"interrupted; go on with Trainer.resume({str(self.last_checkpoint)!a}, ...)")
        raise KeyboardInterrupt

    def _is_best(self, metrics: Mapping[str, float], step: int, *, is_complete: bool) -> bool:
        """Whether this is the best step so far. ``is_complete``: a metric that is missing now will always be."""
        is_best = self.state.is_best(metrics, step)
        if is_complete and self.state.best is not None:
            self.state.best.check(metrics)
        return is_best

    def _is_to_be_saved(self, is_last: bool) -> bool:
        every = self.config.save_every_steps
        return every > 0 and (is_last or self.step % every == 0)

    # ------------------------------------------------------------------ saving

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint that :meth:`resume` goes on from bit for bit; it appears whole or not at all.

        With several processes, all must call this; the first one writes. The checkpoint can be resumed with another
        number of processes; results then agree up to rounding. A checkpoint at ``path`` is replaced. Raises ValueError
        where anything else stands there, and FloatingPointError for weights that are not finite.
        """
        check_replaceable(Path(path))
        self.state.check_sound()
        return self._saved(self.state.save(Path(path)))

    def save_numbered(self) -> Path:
        """Save under ``out/checkpoints/step-…`` and keep the newest ``config.keep_checkpoints``.

        Raises ValueError without ``out``.
        """
        if self.out is None:
            raise ValueError("the trainer has no folder to save in: pass out=… to the Trainer, or call save(path)")
        self.state.check_sound()
        return self._saved(self.state.save_numbered(self.out / "checkpoints"))

    def _saved(self, checkpoint: Path) -> Path:
        self.state.counters.saved(checkpoint)
        return checkpoint

    def save_model(self, path: str | Path) -> None:
        """Write the policy alone, also where its weights are split among processes.

        A plain Hugging Face folder; for a model with an adapter, its weights by name (merge it first for a plain one).
        """
        self.state.save_model(Path(path))

    def save_value(self, path: str | Path) -> None:
        """Write the critic alone, for ``Trainer(value=path)``. Raises ValueError for a run without one.

        With several processes, all must call this; the first one writes.
        """
        if not self.config.has_critic:
            raise ValueError("this run has no critic to save: its advantages need none")
        self.state.save_value(Path(path))

    @classmethod
    @shown_errors()
    def resume(
        cls,
        path: str | Path,
        prompts: Sequence[Any] | None = None,
        reward: RewardFn | None = None,
        *,
        model: nn.Module | None = None,
        tokenizer: Any | None = None,
        reference: Reference | Callable[[Generation, Sequence[Sample]], Tensor] | None = None,
        retain: Sequence[Any] | None = None,
        sampler: Sampler | None = None,
        advantage: AdvantageFn | None = None,
        policy_loss: PolicyLoss | None = None,
        value: nn.Module | None = None,
        eval_prompts: Sequence[Any] | None = None,
        eval_sampling: Sampling | None = None,
        out: str | Path | None = None,
        device: str | torch.device | None = None,
        use_tensorboard: bool | None = None,
    ) -> Trainer:
        """A trainer that goes on where :meth:`save` was called, to the same bits, given the same arguments as then.

        ``path``: a checkpoint, a folder of them, or a run's ``out``; the newest undamaged one is taken. ``model`` is
        needed only where the policy was no plain Hugging Face model (an adapter, say). ``device``: as for the Trainer;
        None: where it was saved, or where ``model`` is. On another kind of device a run goes on, but not to the same
        bits. The dtype is the saved one. Raises ValueError for a damaged checkpoint, for other prompts than those that
        were saved, and where a function of your own was used then and is missing now.
        """
        if isinstance(value, str | Path):
            raise ValueError(f"value={value}: the checkpoint holds the critic's weights, leave value out")
        snapshot = read_snapshot(Path(path), model, tokenizer, device)
        trainer = cls(
            snapshot.model,
            prompts,
            reward,
            snapshot.config,
            tokenizer=snapshot.tokenizer,
            reference=reference,
            retain=retain,
            sampler=sampler,
            advantage=advantage,
            policy_loss=policy_loss,
            value=value,
            eval_prompts=eval_prompts,
            eval_sampling=eval_sampling,
            out=out,
            device=snapshot.device,
            use_tensorboard=use_tensorboard,
        )
        check_own(snapshot, trainer.state.own, seams=SEAMS, asker="resume")
        trainer.state.check_texts(snapshot)
        trainer.state.restore(snapshot)
        return trainer

    # ------------------------------------------------------------------ what people ask for

    @property
    def model(self) -> nn.Module:
        """The causal LM that is trained."""
        return self.policy.model

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.policy.device

    @property
    def sampling(self) -> Sampling:
        """How the policy's responses are drawn, with the ids that end them."""
        return self.policy.sampling

    @property
    def step(self) -> int:
        """Steps done so far."""
        return self.state.counters.step

    @property
    def policy_version(self) -> int:
        """How many updates the policy has behind it."""
        return self.learner.num_updates

    @property
    def last_checkpoint(self) -> Path | None:
        """The checkpoint that was written or read last."""
        return self.state.counters.last_checkpoint


def _read_prompts(
    prompts: Sequence[Any] | None, tokenizer: Any | None, model: nn.Module, sampling: Sampling, name: str = "prompt"
) -> list[Prompt]:
    """The prompts as token ids, if there are any. Raises ValueError for one that the model cannot read."""
    if prompts is None:
        return []
    read = read_prompts(prompts, tokenizer, name=name)
    context, vocab_size, length = context_length(model), vocabulary_size(model), sampling.response_length
    check_lengths(read, context=context, response_length=length, vocab_size=vocab_size, name=name)
    return read
