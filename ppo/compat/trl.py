"""TRL's classic ``PPOTrainer`` (0.4 to 0.11) under its old names: old scripts run after a change of their import.

    from ppo.compat.trl import AutoModelForCausalLMWithValueHead, LengthSampler, PPOConfig, PPOTrainer, set_seed

The script keeps its loop: ``generate(queries)``, a score for each response, ``step(queries, responses, scores)``. The
work is done by a :class:`ppo.Trainer`, which a script reaches as ``PPOTrainer.trainer``. Three things differ from TRL
on purpose: dropout stays off, a loss is the mean over the tokens of a minibatch (in TRL a mean of means), and
advantages are whitened with the biased variance. An argument without a counterpart here is an error that names the
remedy. Only one process and only decoder models are supported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..actor_critic import checkpointed_layers
from ..config import Sampling
from ..generation import generate
from ..lm.backbone import vocabulary_size
from ..lm.device import device_of, move, resolve_device
from ..lm.precision import statistics_dtype
from ..reference import FrozenReference
from ..trainer import Trainer
from ..types import Responses
from .given import read_tokens
from .trl_config import PPOConfig, refuse_unknown, with_optimizer
from .trl_core import LengthSampler, respond_to_batch, set_seed
from .trl_generation import read_sampling, warn_of_other_distribution
from .trl_input import read_ids, read_score
from .trl_model import AutoModelForCausalLMWithValueHead, create_reference_model
from .trl_stats import environment_statistics, old_statistics

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "LengthSampler",
    "PPOConfig",
    "PPOTrainer",
    "create_reference_model",
    "respond_to_batch",
    "set_seed",
]

_REMEDIES = {
    "num_shared_layers": "use ppo.Trainer with ppo.Config(train_top_layers=…)",
    "lr_scheduler": "use ppo.Trainer with ppo.Config(schedule=…, total_steps=…)",
    "training_data_collator": "step() does its own padding; leave it out",
    "processing_class": "this is a name of TRL 0.12 and later: the classic one is tokenizer",
    "reward_model": "call it in your loop, between generate() and step(), or use ppo.Trainer(reward=…)",
    "args": "this is a name of TRL 0.12 and later: the classic one is config",
    "train_dataset": "this is a name of TRL 0.12 and later: the classic one is dataset",
    "eval_dataset": "generate() and score in your loop, or use ppo.Trainer(eval_prompts=…)",
    "value_model": "the value head is on the model; an own critic: ppo.Trainer(value=…)",
    "reward_processing_class": "score in your loop, between generate() and step()",
    "reward_funcs": "call them in your loop, between generate() and step(), or use ppo.Trainer(reward=…)",
    "policy": "this is a name of TRL 0.12: the classic one is model",
    "ref_policy": "this is a name of TRL 0.12: the classic one is ref_model",
    "peft_config": "wrap the model before: AutoModelForCausalLMWithValueHead.from_pretrained(peft_model)",
    "callbacks": "your script writes the loop: call them there",
    "optimizers": "pass one of them as optimizer",
    "data_collator_kwargs": "bind them yourself: data_collator=functools.partial(…)",
}


class PPOTrainer:
    """Offers ``generate`` and ``step``. The script writes the loop around them.

    config         :class:`PPOConfig`
    model          :class:`AutoModelForCausalLMWithValueHead`, trained in place; it and ``ref_model`` move to the
                   accelerator, if there is one, unless ``config.accelerator_kwargs`` is ``{"cpu": True}``
    ref_model      the same class, never changed; None: the model as it is now (with its adapter off, if it has one)
    tokenizer      the model's; None: nothing is decoded
    dataset        for ``dataloader``: anything with ``len`` and ``[i]``; all its columns are kept
    optimizer      an Adam or AdamW; its settings are taken over
    data_collator  makes a batch of a list of rows; None: a dict of lists
    """

    def __init__(
        self,
        config: PPOConfig | None = None,
        model: AutoModelForCausalLMWithValueHead | None = None,
        ref_model: AutoModelForCausalLMWithValueHead | None = None,
        tokenizer: Any | None = None,
        dataset: Any | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        **settings: Any,
    ) -> None:
        named = [name for name, value in settings.items() if name in _REMEDIES and value is None]
        refuse_unknown("PPOTrainer", settings, named, _REMEDIES)
        if not isinstance(config, PPOConfig):
            made = "make one of it, PPOConfig(**config)" if isinstance(config, Mapping) else "give a PPOConfig"
            raise ValueError(f"PPOTrainer: config={config!r:.60} is a {type(config).__name__}: {made}, of {__name__}")
        if model is None:
            raise ValueError("PPOTrainer: model is missing: give AutoModelForCausalLMWithValueHead.from_pretrained(…)")
        for name, given in (("model", model), ("ref_model", ref_model)):
            if given is not None and not isinstance(given, AutoModelForCausalLMWithValueHead):
                raise ValueError(
                    f"PPOTrainer: {name} is a {type(given).__name__}: wrap it, "
                    "AutoModelForCausalLMWithValueHead.from_pretrained(model)"
                )
        self.config, self.model, self.tokenizer, self.dataset = config, model, tokenizer, dataset
        self.trainer = _make_trainer(config, model, ref_model, tokenizer, optimizer)
        self.ref_model = ref_model
        self.accelerator = _Accelerator(self.trainer.device, config.log_with)
        self.dataloader = _make_loader(dataset, config, data_collator) if dataset is not None else None

    @property
    def current_device(self) -> torch.device:
        """The device of the model."""
        return self.trainer.device

    @property
    def optimizer(self) -> Any:
        """The library's own optimiser: an AdamW over policy and value head."""
        return self.trainer.learner.optimizer

    def generate(
        self,
        query_tensor: Tensor | Sequence[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Responses to one query, int64 [P], as [1, P+T], or to a list of queries, as a list of [P+T].

        With ``return_prompt=False`` the query is left out. EOS is kept, and there is no padding. ``batch_size``: how
        many sequences are decoded side by side (None: 64); no sample depends on it. ``generate_ref_response`` adds the
        reference's responses as a second result. The other arguments: see :func:`read_sampling`. An ``eos_token_id``
        beyond the model's vocabulary cannot be sampled and ends nothing, as in transformers.
        """
        length = length_sampler() if length_sampler is not None else None
        sampling = self._possible(read_sampling(generation_kwargs, length=length))
        warn_of_other_distribution(sampling)
        models: list[nn.Module] = [self.model.pretrained_model]
        if generate_ref_response:
            models.append(self._reference_model())
        queries = [query_tensor] if isinstance(query_tensor, Tensor) else list(query_tensor)
        slots = batch_size if batch_size is not None else self.trainer.config.rollout_slots
        answers = [self._respond(model, queries, sampling, slots, return_prompt) for model in models]
        results = [answer[0].unsqueeze(0) if isinstance(query_tensor, Tensor) else answer for answer in answers]
        return tuple(results) if generate_ref_response else results[0]

    def _possible(self, sampling: Sampling) -> Sampling:
        """The distribution without end tokens that the model does not have: StackLLaMA's scripts pass 100_000."""
        if sampling.eos_ids is None:
            return sampling
        size = vocabulary_size(self.model.pretrained_model)
        return replace(sampling, eos_ids=tuple(i for i in sampling.eos_ids if i < size))

    def _respond(
        self, model: nn.Module, queries: Sequence[Tensor], sampling: Sampling, slots: int, return_prompt: bool
    ) -> list[Tensor]:
        prompts = [read_ids(query, f"query {index}") for index, query in enumerate(queries)]
        seed = int(torch.randint(2**62, (), generator=self.trainer.generator, device="cpu"))
        generation = generate(model, prompts, sampling, seed=seed, slots=slots)
        responses = [tokens[mask] for tokens, mask in zip(generation.tokens, generation.mask, strict=True)]
        if not return_prompt:
            return responses
        return [torch.cat([query.to(r.device), r]) for query, r in zip(queries, responses, strict=True)]

    def _reference_model(self) -> nn.Module:
        if self.ref_model is not None:
            return self.ref_model.pretrained_model
        frozen = self.trainer.state.frozen
        if frozen is None or frozen is self.trainer.model:
            raise ValueError("generate_ref_response=True needs a reference that is a model: pass ref_model=…")
        return frozen

    def step(
        self,
        queries: Sequence[Tensor],
        responses: Sequence[Tensor],
        scores: Sequence[Tensor | float] | Tensor,
        response_masks: Sequence[Tensor] | None = None,
    ) -> dict[str, Any]:
        """One PPO step on ``batch_size`` queries, int64 [P], their responses, int64 [T], and their scores.

        Returns the statistics under TRL's names: see :mod:`ppo.compat.trl_stats`.
        """
        if response_masks is not None:
            raise ValueError("step() does not take response_masks: every token of a response is an action")
        for name, values in (("queries", queries), ("responses", responses), ("scores", scores)):
            has_length = hasattr(values, "__len__") and getattr(values, "shape", None) != ()
            found: Any = len(values) if has_length else f"{type(values).__name__} as"
            if found != self.config.batch_size:
                raise ValueError(f"step() got {found} {name}, batch_size is {self.config.batch_size}")
        started, kl_coef = time.perf_counter(), self.trainer.kl.coef
        prompts = [read_ids(query, f"query {index}") for index, query in enumerate(queries)]
        answers = [read_ids(response, f"response {index}") for index, response in enumerate(responses)]
        numbers = torch.tensor(
            [read_score(score, index) for index, score in enumerate(scores)], dtype=torch.float32, device="cpu"
        )
        rollout = self.trainer.appraise(self._measured(prompts, answers, numbers))
        with checkpointed_layers(self.trainer.policy.actor) if self._is_checkpointed() else nullcontext():
            metrics = self.trainer.update(rollout)
        seconds = time.perf_counter() - started
        return old_statistics(rollout, metrics, self.trainer.config, kl_coef=kl_coef, seconds=seconds)

    def _measured(self, prompts: list[list[int]], answers: list[list[int]], scores: Tensor) -> Responses:
        """What policy, critic and reference say. A response may go on behind an EOS, and may have any length."""
        trainer = self.trainer
        generation, read = read_tokens(trainer.policy, trainer.tokenizer, prompts, answers)
        scores = scores.to(statistics_dtype(trainer.policy.dtype))
        return trainer.collector.measure(
            generation, read, scores, has_logprobs=False, policy_version=trainer.policy_version
        )

    def _is_checkpointed(self) -> bool:
        """Whether the script switched gradient checkpointing on for the model but not in the config."""
        return self.model.is_gradient_checkpointed and not self.trainer.config.gradient_checkpointing

    def log_stats(
        self,
        stats: Mapping[str, Any],
        batch: Mapping[str, Sequence[Any]],
        rewards: Sequence[Tensor | float] | Tensor,
        columns_to_log: Sequence[str] = ("query", "response"),
    ) -> None:
        """Pass the numbers, with the mean and spread of the rewards, to ``config.log_with``, if there is one.

        A tracker with accelerate's ``log_table`` also gets the texts. Raises ValueError for a missing column.
        """
        if missing := [column for column in columns_to_log if column not in batch]:
            raise ValueError(f"log_stats: the batch has no column {missing[0]!r}; it has {', '.join(batch)}")
        numbers = torch.tensor(
            [read_score(reward, index) for index, reward in enumerate(rewards)], dtype=torch.float32, device="cpu"
        )
        self.accelerator.log({**stats, **environment_statistics(numbers)}, step=self.trainer.step - 1)
        log_table = getattr(self.config.log_with, "log_table", None)
        if log_table is not None:
            rows = [list(row) for row in zip(*(batch[name] for name in columns_to_log), numbers.tolist(), strict=True)]
            log_table("game_log", columns=[*columns_to_log, "reward"], data=rows, step=self.trainer.step - 1)

    def save_pretrained(self, folder: str) -> None:
        """Save the model, the value head and the tokenizer."""
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class _Accelerator:
    """The attributes of ``ppo_trainer.accelerator`` that old scripts use, for one process."""

    device: torch.device
    tracker: Any = None
    num_processes: int = 1
    process_index: int = 0
    local_process_index: int = 0
    is_main_process: bool = True
    is_local_main_process: bool = True

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Pass the values to ``config.log_with``, if there is one."""
        if self.tracker is not None:
            self.tracker.log(dict(values), step=step)

    def unwrap_model(self, model: nn.Module) -> nn.Module:
        """The model itself, because it was never wrapped."""
        return model

    def wait_for_everyone(self) -> None:
        """Do nothing: there is only one process."""


def _make_trainer(
    config: PPOConfig,
    model: AutoModelForCausalLMWithValueHead,
    ref_model: AutoModelForCausalLMWithValueHead | None,
    tokenizer: Any | None,
    optimizer: torch.optim.Optimizer | None,
) -> Trainer:
    """The library's trainer for the policy. It gets the value head's weights, and the model gets its value head."""
    settings = config.to_ppo()
    if optimizer is not None:
        settings = with_optimizer(settings, optimizer, [p for p in model.parameters() if p.requires_grad])
    if ref_model is None and settings.kl_coef == 0:
        ref_model = create_reference_model(model)  # TRL reports KL even if it costs nothing
    reference = None
    if ref_model is not None:
        reference = FrozenReference(ref_model.pretrained_model, settings.sampling(), is_adapter_off=False)
    place = _device_for(config, model)
    for wrapper in (model, ref_model):
        if wrapper is not None:
            move(wrapper, place)
    # The trainer needs no prompts and no reward: the script passes queries to generate() and scores to step().
    trainer = Trainer(model.pretrained_model, config=settings, tokenizer=tokenizer, reference=reference)
    if trainer.processes.count > 1:
        raise ValueError(f"this PPOTrainer runs in one process, not {trainer.processes.count}: use ppo.Trainer")
    value_head = trainer.policy.actor.value_head
    assert value_head is not None
    value_head.load_state_dict(model.v_head.state_dict())
    model.v_head = value_head
    return trainer


def _device_for(config: PPOConfig, model: AutoModelForCausalLMWithValueHead) -> torch.device:
    """Where the models go: as in TRL to the accelerator, if there is one. A model that left the CPU stays there."""
    if (config.accelerator_kwargs or {}).get("cpu"):
        return torch.device("cpu")
    now = device_of(model)
    return resolve_device("auto") if now.type == "cpu" else now


def _make_loader(dataset: Any, config: PPOConfig, collate: Callable[[list[Any]], Any] | None) -> DataLoader[Any]:
    """Shuffled batches of ``batch_size`` rows. An incomplete last batch is dropped; ValueError if there is no other."""
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"PPOTrainer: dataset is a {type(dataset).__name__} without a length: pass list(…) of it")
    if len(dataset) < config.batch_size:
        raise ValueError(
            f"PPOTrainer: dataset has {len(dataset)} rows, fewer than batch_size={config.batch_size}, and gives no "
            "batch: give more rows, or a smaller PPOConfig(batch_size=…)"
        )
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        collate_fn=collate if collate is not None else _columns,
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(config.seed),
    )


def _columns(rows: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
