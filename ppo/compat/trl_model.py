"""TRL's model with a value head, and its reference copy, made of this library's parts.

The policy is ``pretrained_model``, any causal LM. The head is a :class:`ppo.ValueHead`. It starts at 0 and is saved
beside the model. This module trains nothing.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..actor_critic import ValueHead
from ..checkpoint.folder import load_tensors
from ..lm.backbone import Backbone
from ..lm.device import accelerator, move, resolve_device
from ..lm.load import check_causal, load_causal
from ..lm.safetensors_header import check_kind_of_numbers
from .trl_config import refuse_unknown

HEAD_FILE = "value_head.safetensors"
_TRL_HEAD = {"v_head.summary.weight": "layers.0.weight", "v_head.summary.bias": "layers.0.bias"}
_REMEDIES = {
    "peft_config": "make the adapter first: from_pretrained(peft.get_peft_model(model, peft_config))",
    "load_in_8bit": "quantised weights cannot be trained; load them in float32 or bfloat16",
    "load_in_4bit": "quantised weights cannot be trained; load them in float32 or bfloat16",
    "quantization_config": "quantised weights cannot be trained; load them in float32 or bfloat16",
    "is_trainable": "adapters are trained if their parameters require gradients; leave it out",
    "v_head_init_strategy": "the value head starts at 0, so that the first advantages are the rewards; leave it out",
    "v_head_initializer_range": "the value head starts at 0; leave it out",
    "summary_dropout_prob": "there is no dropout in rollouts and updates; leave it out",
    "reward_adapter": "load the reward model yourself and call it between generate() and step()",
}


class AutoModelForCausalLMWithValueHead(nn.Module):
    """A causal LM and a value head. ``pretrained_model``: a loaded causal LM, with or without an adapter."""

    def __init__(self, pretrained_model: nn.Module, **settings: Any) -> None:
        super().__init__()
        refuse_unknown(type(self).__name__, settings, (), _REMEDIES)
        check_causal(pretrained_model, name="pretrained_model")
        self.pretrained_model = pretrained_model
        self.v_head = ValueHead(Backbone(pretrained_model).hidden_size, "linear")
        self.v_head.to(next(pretrained_model.parameters()).device)
        self.is_gradient_checkpointed = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | nn.Module,
        *,
        device_map: Any = None,
        torch_dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> AutoModelForCausalLMWithValueHead:
        """Load a hub id or a folder (with its value head, if the folder holds one), or wrap a loaded causal LM.

        ``device_map``: None, a device (:func:`ppo.lm.device.resolve_device`; "auto" is the accelerator, if there is
        one), or ``{"": device}``, where a number is an accelerator's. Raises ValueError for a model that is no causal
        LM, and for settings and devices that do not exist here.
        """
        refuse_unknown(f"{cls.__name__}.from_pretrained", settings, _asks_for_nothing(settings), _REMEDIES)
        if trust_remote_code:
            warnings.warn("trust_remote_code has no effect: code of a repository is never run here", stacklevel=2)
        device, pretrained = _device(device_map), source
        if not isinstance(pretrained, nn.Module):
            pretrained = load_causal(pretrained, dtype=torch_dtype or torch.float32)
        elif torch_dtype is not None:
            raise ValueError("torch_dtype needs a name or a folder: cast a loaded model yourself")
        assert isinstance(pretrained, nn.Module)
        if device is not None:
            move(pretrained, device)
        model = cls(pretrained)
        if not isinstance(source, nn.Module):
            _load_head(model.v_head, Path(source))
        return model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """(logits [B, S, V], None, values [B, S]). The None stands where TRL has a loss."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        backbone = Backbone(self.pretrained_model)
        features = backbone(input_ids, attention_mask.bool())
        return backbone.output_layer(features.before_logits), None, self.v_head(features.hidden)

    @property
    def generate(self) -> Any:
        """The model's own ``generate`` from transformers. :meth:`ppo.compat.trl.PPOTrainer.generate` is faster."""
        return self.pretrained_model.generate

    @property
    def config(self) -> Any:
        """The causal LM's own configuration."""
        return self.pretrained_model.config

    def gradient_checkpointing_enable(self) -> None:
        """From now on, recompute the blocks in the backward pass of every ``step``, to save memory."""
        self.is_gradient_checkpointed = True

    def gradient_checkpointing_disable(self) -> None:
        """From now on, keep activations for the backward pass."""
        self.is_gradient_checkpointed = False

    def save_pretrained(self, folder: str | Path, *, max_shard_size: str = "1000GB") -> None:
        """Write a plain Hugging Face folder, and the value head in a file of its own, which :meth:`from_pretrained`
        reads. For a model with an adapter the folder holds what the adapter's ``save_pretrained`` writes.
        """
        model: Any = self.pretrained_model
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        head = {name: tensor.detach().cpu().contiguous() for name, tensor in self.v_head.state_dict().items()}
        save_file(head, str(Path(folder) / HEAD_FILE))


def create_reference_model(
    model: AutoModelForCausalLMWithValueHead, num_shared_layers: int | None = None, pattern: str | None = None
) -> AutoModelForCausalLMWithValueHead:
    """A frozen copy, in evaluation mode. Raises ValueError for shared layers."""
    if num_shared_layers is not None or pattern is not None:
        raise ValueError(
            f"create_reference_model does not take num_shared_layers={num_shared_layers!r}, pattern={pattern!r}: use "
            "ppo.Trainer with ppo.Config(train_top_layers=…), which shares the blocks below"
        )
    copied = copy.deepcopy(model).eval()
    copied.requires_grad_(False)
    return copied


def _asks_for_nothing(settings: dict[str, Any]) -> list[str]:
    """The names of the settings that are given but ask for nothing: False or None."""
    return [name for name, value in settings.items() if name in _REMEDIES and not value]


def _device(device_map: Any) -> torch.device | None:
    """The one device of a ``device_map``; None: the model stays where it is. Raises ValueError for any other map."""
    asked = device_map[""] if isinstance(device_map, dict) and set(device_map) == {""} else device_map
    if asked is None:
        return None
    if isinstance(asked, int) and not isinstance(asked, bool):
        asked = f"{accelerator() or 'cuda'}:{asked}"
    if not isinstance(asked, str | torch.device):
        raise ValueError(f"device_map={device_map!r} is not supported: use None, a device, or {{'': device}}")
    return resolve_device(asked)


def _load_head(head: ValueHead, folder: Path) -> None:
    """Load the value head of a folder, if it holds one: this library's in its own file, or TRL's among the weights."""
    if (folder / HEAD_FILE).is_file():
        saved = load_tensors(folder / HEAD_FILE)
        for name, own in head.state_dict().items():
            if name in saved:
                check_kind_of_numbers(saved[name], own, name=f"{folder / HEAD_FILE}: {name}")
        head.load_state_dict(saved)
        return
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return
    with safe_open(str(weights), framework="pt") as file:
        if set(_TRL_HEAD) <= set(file.keys()):
            saved = {ours: file.get_tensor(theirs) for theirs, ours in _TRL_HEAD.items()}
            for name, tensor in saved.items():
                check_kind_of_numbers(tensor, torch.empty(0), name=f"{weights}: the value head's {name}")
            head.load_state_dict({name: tensor.float() for name, tensor in saved.items()})
