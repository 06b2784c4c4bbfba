"""The settings of TRL's classic ``PPOConfig`` (0.4 to 0.11), and the name that each of them has here.

A setting without a counterpart in this library is an error that names the remedy. No setting is ignored silently. This
module knows no models.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from ..config import Config, KLEstimator

_ESTIMATORS: dict[str, KLEstimator] = {"kl": "k1", "mse": "k2"}
_REMEDIES = {
    "use_score_norm": "subtract the mean from the scores before step(), or leave it out",
    "tracker_kwargs": "make the tracker yourself and pass it: log_with=wandb.init(…)",
    "project_kwargs": "make the tracker yourself and pass it as log_with",
    "push_to_hub_if_best_kwargs": "push the folder that save_pretrained writes",
    "compare_steps": "nothing is compared or pushed; leave it out",
    "world_size": "several processes: use ppo.Trainer under torchrun",
    "is_encoder_decoder": "encoder-decoder models are not supported",
    "entropy_coef": "use ppo.Trainer with ppo.Config(entropy_coef=…)",
    "num_ppo_epochs": "this is a name of TRL 0.12 and later: the classic one is ppo_epochs",
    "num_mini_batches": "this is a name of TRL 0.12 and later: the classic one is mini_batch_size",
    "kl_coef": "this is a name of TRL 0.12 and later: the classic one is init_kl_coef",
    "response_length": "this is a name of TRL 0.12 and later: pass max_new_tokens to generate()",
    "total_episodes": "this is a name of TRL 0.12 and later: your script writes the loop, leave it out",
    "num_train_epochs": "this is a name of TRL 0.12 and later: your script writes the loop, leave it out",
    "max_steps": "this is a name of TRL 0.12 and later: your script writes the loop, leave it out",
    "per_device_train_batch_size": "this is a name of TRL 0.12 and later: the classic one is batch_size",
    "local_batch_size": "this is a name of TRL 0.12 and later: the classic one is batch_size",
    "local_mini_batch_size": "this is a name of TRL 0.12 and later: the classic one is mini_batch_size",
    "local_rollout_forward_batch_size": "this is a name of TRL 0.12 and later: pass batch_size to generate()",
    "kl_estimator": "this is a name of TRL 0.12 and later: the classic one is kl_penalty, 'kl' (k1) or 'mse' (k2)",
    "temperature": "this is a name of TRL 0.12 and later: pass temperature to generate()",
    "stop_token": "this is a name of TRL 0.12 and later: pass eos_token_id to generate()",
    "stop_token_id": "this is a name of TRL 0.12 and later: pass eos_token_id to generate()",
    "missing_eos_penalty": "this is a name of TRL 0.12 and later: subtract it from the scores before step()",
    "num_sample_generations": "this is a name of TRL 0.12 and later: call generate() in your loop",
    "sft_model_path": "this is a name of TRL 0.12 and later: load the model and pass it to PPOTrainer",
    "reward_model_path": "this is a name of TRL 0.12 and later: load the reward model and call it in your loop",
    "output_dir": "this is a name of TRL 0.12 and later: call save_pretrained(folder)",
    "logging_steps": "this is a name of TRL 0.12 and later: step() returns the statistics, log them in your loop",
    "report_to": "this is a name of TRL 0.12 and later: make the tracker and pass it as log_with",
    "lr_scheduler_type": "use ppo.Trainer with ppo.Config(schedule=…, total_steps=…)",
    "warmup_steps": "use ppo.Trainer with ppo.Config(warmup_steps=…)",
    "weight_decay": "pass a torch.optim.AdamW as optimizer",
    "bf16": "load the model in bfloat16: from_pretrained(…, torch_dtype=torch.bfloat16)",
    "fp16": "load the model in bfloat16: from_pretrained(…, torch_dtype=torch.bfloat16)",
}


@dataclass(init=False)
class PPOConfig:
    """TRL's names with TRL's defaults. :meth:`to_ppo` translates them.

    ``mini_batch_size``: None means 128, or the whole batch if that is smaller (as in TRL 0.7 and later; before, it was
    1). ``exp_name``, ``task_name``, ``model_name``, ``query_dataset``, ``reward_model``, ``tracker_project_name`` and
    ``steps`` are notes for the script. ``remove_unused_columns`` has no effect: no column is ever removed.
    ``log_with``: None, or an object with ``log(values, step=…)``, such as the one that ``wandb.init`` returns.
    """

    exp_name: str = "ppo"
    task_name: str | None = None
    model_name: str | None = None
    query_dataset: str | None = None
    reward_model: str | None = None
    tracker_project_name: str = "trl"
    steps: int = 20_000
    remove_unused_columns: bool = True
    optimize_cuda_cache: bool | None = None
    optimize_device_cache: bool | None = None
    accelerator_kwargs: Mapping[str, Any] | None = None  # {"cpu": True}: stay on the CPU; there is no accelerate here
    log_with: Any = None

    seed: int = 0
    learning_rate: float = 1.41e-5
    adap_kl_ctrl: bool = True
    init_kl_coef: float = 0.2
    kl_penalty: Literal["kl", "abs", "mse", "full"] = "kl"
    target: float = 6.0
    horizon: float = 10_000
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    batch_size: int = 128
    forward_batch_size: int | None = None
    mini_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    ppo_epochs: int = 4
    max_grad_norm: float | None = None
    early_stopping: bool = False
    target_kl: float = 1.0
    ratio_threshold: float = 10.0
    use_score_scaling: bool = False
    score_clip: float | None = None
    whiten_rewards: bool = False
    gradient_checkpointing: bool = False

    def __init__(self, **settings: Any) -> None:
        defaults = {field.name: field.default for field in fields(type(self))}
        if settings.get("use_score_norm") is False:  # the old default, given explicitly
            settings = {name: value for name, value in settings.items() if name != "use_score_norm"}
        refuse_unknown("PPOConfig", settings, defaults, _REMEDIES)
        for name, default in defaults.items():
            setattr(self, name, settings.get(name, default))
        if self.forward_batch_size is not None:
            self.mini_batch_size = self.forward_batch_size
        elif self.mini_batch_size is None:
            self.mini_batch_size = min(128, self.batch_size)
        if self.optimize_cuda_cache or self.optimize_device_cache:
            warnings.warn(
                "optimize_cuda_cache and optimize_device_cache have no effect: there is no such cache here",
                stacklevel=2,
            )
        check_tracker(self.log_with)
        check_accelerator(self.accelerator_kwargs)
        self.to_ppo()  # a wrong setting is found before a model is loaded

    @property
    def total_ppo_epochs(self) -> int:
        """The number of batches that ``steps`` samples make."""
        return math.ceil(self.steps / self.batch_size)

    def to_dict(self) -> dict[str, Any]:
        """All settings under TRL's names."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_ppo(self) -> Config:
        """The same settings as a :class:`ppo.Config`. Raises ValueError, with the remedy, for a setting it cannot have.

        ``early_stopping`` stops at 1.5 x ``target_kl``, as in TRL, but measures KL per token by k3 instead of k1.
        """
        micro, minibatch = self.mini_batch_size or 0, (self.mini_batch_size or 0) * self.gradient_accumulation_steps
        if minibatch < 1 or self.batch_size % minibatch != 0:
            raise ValueError(
                f"PPOConfig.batch_size={self.batch_size} must be a multiple of mini_batch_size x "
                f"gradient_accumulation_steps = {minibatch}"
            )
        if self.kl_penalty not in _ESTIMATORS:
            raise ValueError(f"PPOConfig.kl_penalty={self.kl_penalty!r} is not supported: use 'kl' (k1) or 'mse' (k2)")
        return Config(
            prompts_per_step=self.batch_size,
            minibatch=minibatch,
            microbatch=micro,
            response_length=1,  # unused: the trainer makes no rollouts, because the script passes responses to step()
            epochs=self.ppo_epochs,
            learning_rate=self.learning_rate,
            kl_coef=self.init_kl_coef,
            kl_estimator=_ESTIMATORS[self.kl_penalty],
            kl_controller="adaptive" if self.adap_kl_ctrl else "fixed",
            target_kl_per_sequence=self.target,
            kl_horizon_sequences=int(self.horizon),
            gamma=self.gamma,
            gae_lambda=self.lam,
            policy_clip=self.cliprange,
            value_clip=self.cliprange_value,
            value_coef=self.vf_coef,
            max_grad_norm=self.max_grad_norm,
            max_mean_ratio=self.ratio_threshold,
            stop_kl_per_token=1.5 * self.target_kl if self.early_stopping else None,
            scale_scores=self.use_score_scaling,
            clip_scores=self.score_clip,
            whiten_rewards=self.whiten_rewards,
            gradient_checkpointing=self.gradient_checkpointing,
            seed=self.seed,
        )


def refuse_unknown(owner: str, given: Mapping[str, Any], known: Collection[str], remedies: Mapping[str, str]) -> None:
    """Raise ValueError for the first unknown argument, with its remedy or the known name that is most like it."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, list(known), n=1)
            others = f"the known arguments are {', '.join(known)}" if known else "leave it out"
            hint = f"did you mean {near[0]!r}?" if near else others
            value = " ".join(f"{given[name]!r:.60}".split())
            raise ValueError(f"{owner} does not take {name}={value}: {remedies.get(name, hint)}")


def check_accelerator(settings: Any) -> None:
    """Raise ValueError for settings of accelerate other than ``cpu``."""
    if settings and (not isinstance(settings, Mapping) or set(settings) != {"cpu"}):
        raise ValueError(
            f"PPOConfig.accelerator_kwargs={settings!r:.80}: only {{'cpu': True}} has a meaning here, where "
            "there is no accelerate; leave the rest out"
        )


def check_tracker(tracker: Any) -> None:
    """Raise ValueError for a tracker without a ``log`` method."""
    if tracker is not None and not callable(getattr(tracker, "log", None)):
        raise ValueError(
            f"PPOConfig.log_with={tracker!r} has no method log(values, step=…): pass such an object, for example what "
            "wandb.init() returns, or None"
        )


def with_optimizer(config: Config, optimizer: torch.optim.Optimizer, trained: Collection[torch.nn.Parameter]) -> Config:
    """The config with the settings of an Adam or AdamW, for the trainer's own AdamW.

    An Adam is accepted only without weight decay, because then it equals AdamW. Raises ValueError for any other
    optimiser, for amsgrad, maximize or groups whose settings differ, and for an optimiser that does not hold exactly
    the parameters in ``trained``.
    """
    remedy = "leave optimizer out, and set PPOConfig(learning_rate=…)"
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        raise ValueError(f"PPOTrainer: a {type(optimizer).__name__} is not supported, only Adam and AdamW: {remedy}")
    names = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")
    settings = {tuple(group[name] for name in names) for group in optimizer.param_groups}
    if len(settings) > 1:
        raise ValueError(
            f"PPOTrainer: the optimizer's groups differ in their settings, which is not supported: {remedy}"
        )
    rate, (beta1, beta2), eps, weight_decay, *others = settings.pop()
    is_decay_in_gradient = type(optimizer) is torch.optim.Adam and weight_decay != 0
    if any(others) or is_decay_in_gradient:
        raise ValueError(f"PPOTrainer: amsgrad, maximize and Adam's weight_decay are not supported: {remedy}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held != {id(parameter) for parameter in trained}:
        raise ValueError(
            "PPOTrainer: the optimizer does not hold exactly the parameters with requires_grad=True: call "
            f"requires_grad_(False) on those that must not change, and {remedy}"
        )
    return config.replace(
        learning_rate=float(rate), adam_beta1=beta1, adam_beta2=beta2, adam_eps=eps, weight_decay=float(weight_decay)
    )
