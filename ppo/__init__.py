"""PPO for language models in pure PyTorch: rollouts, KL, GAE and clipped updates for any Hugging Face causal LM.

Start with :class:`Trainer` and :class:`Config`; every part can be used alone. ``ppo/types.py`` holds the glossary.
"""

from .actor_critic import ActorCritic, ValueHead
from .advantages import gae, group_relative, place_scores, shape_rewards, whiten
from .buffer import RolloutBuffer
from .checks.checks import CheckError
from .config import Config, Sampling
from .distributed.processes import process_group
from .environment import EnvironmentSampler, Turn, turn_rewards
from .generation import generate
from .generation.turns import Turns
from .kl import AdaptiveKL, FixedKL, estimate_kl
from .losses import value_loss
from .policy_losses import policy_loss
from .reference import CallableReference, FrozenReference
from .replay import Replay, replay
from .trainer import Trainer
from .types import Environment, Evaluation, Generation, Reference, Responses, RewardFn, Rollout, Sample, Step

__version__ = "0.1.0"

__all__ = [
    "ActorCritic",
    "AdaptiveKL",
    "CallableReference",
    "CheckError",
    "Config",
    "Environment",
    "EnvironmentSampler",
    "Evaluation",
    "FixedKL",
    "FrozenReference",
    "Generation",
    "Reference",
    "Replay",
    "Responses",
    "RewardFn",
    "Rollout",
    "RolloutBuffer",
    "Sample",
    "Sampling",
    "Step",
    "Trainer",
    "Turn",
    "Turns",
    "ValueHead",
    "estimate_kl",
    "gae",
    "generate",
    "group_relative",
    "place_scores",
    "policy_loss",
    "process_group",
    "replay",
    "shape_rewards",
    "turn_rewards",
    "value_loss",
    "whiten",
]
