"""The keyword arguments of transformers' ``generate``, as old scripts pass them, turned into a ``Sampling``.

This module knows names and numbers, no models.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..config import Sampling
from .trl_config import refuse_unknown

_KNOWN = (
    "max_new_tokens", "min_new_tokens", "min_length", "do_sample", "top_k", "top_p", "temperature", "pad_token_id",
    "eos_token_id",
)  # fmt: skip
_REMEDIES = {
    "max_length": "it counts the prompt, too: pass max_new_tokens",
    "num_beams": "beams are no samples of the policy: leave it out",
    "num_return_sequences": "repeat the query instead",
    "repetition_penalty": "PPO's log-probs would differ from those of the sampler: put the penalty into the reward",
    "no_repeat_ngram_size": "PPO's log-probs would differ from those of the sampler: put the penalty into the reward",
    "max_tokens": "pass max_new_tokens",
    "temp": "pass temperature",
    "stop_strings": "pass eos_token_id, or cut the responses before step()",
    "stopping_criteria": "pass eos_token_id, or cut the responses before step()",
    "logits_processor": "PPO's log-probs would differ from those of the sampler: leave it out",
    "attention_mask": "queries have no padding: pass a list of tensors, and leave it out",
    "min_p": "PPO's log-probs would differ from those of the sampler: pass top_p",
    "typical_p": "PPO's log-probs would differ from those of the sampler: pass top_p",
    "penalty_alpha": "contrastive search is no sampling of the policy: leave it out",
    "use_cache": "there is always a cache: leave it out",
    "generation_config": "pass max_new_tokens, top_k, top_p and temperature",
}
_TRANSFORMERS_TOP_K = 50  # the default of transformers' generate


def read_sampling(given: Mapping[str, Any], *, length: int | None = None) -> Sampling:
    """The distribution that the arguments ask for. ``length`` (tokens), if given, replaces ``max_new_tokens``.

    As in transformers, decoding is greedy without ``do_sample=True``, and top_k is 50 unless it is given (0 switches it
    off). ``pad_token_id`` has no effect, because the responses hold no padding. With ``eos_token_id=-1`` no token ends
    a response. Raises ValueError, with the remedy, for every other argument, and for temperature 0 with
    ``do_sample=True``.
    """
    refuse_unknown("generate()", given, _KNOWN, _REMEDIES)
    length = length if length is not None else given.get("max_new_tokens")
    if length is None:
        raise ValueError("generate() needs max_new_tokens=…, the most tokens of a response")
    if (given.get("min_length") or 0) > 0:
        raise ValueError(f"generate() does not take min_length={given['min_length']}: pass min_new_tokens")
    eos_ids = _eos_ids(given.get("eos_token_id"))
    least = int(given.get("min_new_tokens") or 0)
    if not given.get("do_sample", False):
        return Sampling(response_length=int(length), min_response_length=least, temperature=0.0, eos_ids=eos_ids)
    temperature = _temperature(given.get("temperature"))
    top_k, top_p = given.get("top_k", _TRANSFORMERS_TOP_K), given.get("top_p")
    return Sampling(
        response_length=int(length),
        min_response_length=least,
        temperature=temperature,
        top_k=int(top_k or 0),
        top_p=1.0 if top_p is None else float(top_p),
        eos_ids=eos_ids,
    )


def warn_of_other_distribution(sampling: Sampling) -> None:
    """Warn if responses are sampled otherwise than at temperature 1 without filters, where ``step`` measures them."""
    if sampling.temperature != 1 or sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_response_length > 0:
        warnings.warn(
            f"responses are drawn at temperature={sampling.temperature:g}, top_k={sampling.top_k}, "
            f"top_p={sampling.top_p:g}, min_new_tokens={sampling.min_response_length}, but step() measures them as if "
            "they were drawn at temperature 1 without filters, as TRL did, so KL can come out negative: pass "
            "do_sample=True, top_k=0, top_p=1.0, or use ppo.Trainer, which measures the distribution it samples from",
            RuntimeWarning,
            stacklevel=3,
        )


def _temperature(value: Any) -> float:
    if value is None:
        return 1.0
    if not isinstance(value, int | float) or not value > 0:
        raise ValueError(
            f"generate() does not take temperature={value!r:.60} with do_sample=True: pass a number above 0, or "
            "do_sample=False for greedy decoding"
        )
    return float(value)


def _eos_ids(value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        ids = [int(i) for i in (value if isinstance(value, (list, tuple)) else [value])]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"generate() does not take eos_token_id={value!r:.60}: pass a token id, or a list of them, such as "
            "tokenizer.eos_token_id"
        ) from error
    return tuple(i for i in ids if i >= 0)
