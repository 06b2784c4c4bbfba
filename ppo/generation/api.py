"""``generate``: responses to prompts from any causal LM, with everything PPO needs to know about them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..config import Sampling
from ..lm.backbone import evaluation_mode, vocabulary_size
from ..types import Generation, ValueFn
from .decoders import Unsupported, bind
from .engine import DecoderEngine
from .hf.engine import HFEngine
from .requests import Requests, read_requests
from .speculative import Drafts, read_drafts
from .static import compiled_step, static_width
from .transcript import Transcript
from .work import Work


@torch.no_grad()
def generate(
    model: nn.Module,
    prompts: Sequence[Any],
    sampling: Sampling = Sampling(),
    *,
    tokenizer: Any | None = None,
    seed: int = 0,
    request_ids: Sequence[int] | None = None,
    drafts: Sequence[Any] | None = None,
    slots: int = 64,
    value_fn: ValueFn | None = None,
    engine: Literal["auto", "hf"] = "auto",
    compiled: bool = False,
) -> Generation:
    """Sample ``sampling.num_samples`` responses to every prompt.

    ``prompts``: token-id lists, strings (with ``tokenizer``), or dicts with "prompt". Rows come back in request order,
    the samples of one prompt side by side; T is the longest response that came about. Padding holds id 0: only the
    masks say what is real.

    ``seed`` and a request's id (``request_ids``, by default 0, 1, 2, … in row order) fix its random numbers: a sample
    depends neither on ``slots`` (the most sequences decoded side by side) nor on its neighbours, beyond rounding.
    ``drafts`` are guesses, token ids, one a response or one a prompt: where they are right they save time, and samples
    are the same with them and without, up to rounding, which in bfloat16 is coarse (see ``speculative.py``). Memorised
    text is one, the last step's responses are another.
    The fast decoders check them as long as enough tokens come out right; the model's own forward does not look at them.

    ``value_fn`` is given the hidden states [N, H] that tokens are sampled from and returns [N], V before the token; the
    hidden states are for looking at (inference tensors), not for training on.

    ``engine="hf"`` always goes through the model's own forward; "auto" takes a fast decoder where there is one for the
    model's family that reproduces the model's own logits, and all weights are whole (:mod:`ppo.distributed.sharding`).
    The model samples in eval mode and in its own dtype (autocast is off), sampling is in float32. Tensors stay on the
    model's device and may be used in training.

    ``compiled=True`` decodes with a step of static shapes that ``torch.compile`` takes as one graph: the same samples,
    up to rounding. It is meant for CUDA, where it was never run; on the CPU it needs a C++ compiler and time to compile
    (docs/performance.md). Without a fast decoder for the model it changes nothing, and warns.

    Raises ValueError, with value and remedy, for bad prompts, ids, lengths and options.
    """
    if slots < 1:
        raise ValueError(f"slots={slots} must be at least 1")
    if engine not in ("auto", "hf"):
        raise ValueError(f"engine={engine!r} must be 'auto' or 'hf'")
    if compiled and engine == "hf":
        raise ValueError("compiled=True compiles the step of a fast decoder: take engine='auto'")
    device = next(model.parameters()).device
    requests = read_requests(model, prompts, sampling, tokenizer=tokenizer, seed=seed, request_ids=request_ids)
    guesses = None if drafts is None else read_drafts(drafts, requests, vocabulary_size(model))
    transcript = Transcript(requests, device, value_fn)
    started = time.perf_counter()
    with evaluation_mode(model), torch.autocast(device.type, enabled=False):
        chosen = _engine(model, requests, guesses, slots=min(slots, len(requests)), engine=engine, compiled=compiled)
        # The transcript was made outside, so what comes back may be trained on; a model's own forward may keep things.
        with torch.inference_mode() if isinstance(chosen, DecoderEngine) else torch.no_grad():
            work = chosen.run(requests, transcript)
    seconds = time.perf_counter() - started
    return transcript.generation(_metrics(work, transcript.num_tokens, seconds, has_drafts=drafts is not None))


def _engine(
    model: nn.Module,
    requests: Requests,
    guesses: list[tuple[int, ...]] | None,
    *,
    slots: int,
    engine: Literal["auto", "hf"],
    compiled: bool,
) -> DecoderEngine | HFEngine:
    """The fast engine where the model's family has a decoder that reproduces it, else the model's own forward."""
    if engine == "auto":
        try:
            if compiled:
                network = bind(model, rows=None, length=static_width(requests.max_length))
            else:
                network = bind(model, rows=slots, length=requests.max_length)
        except Unsupported as reason:
            warnings.warn(
                f"{type(model).__name__} is sampled through its own forward, which is slower: {reason}",
                RuntimeWarning,
                stacklevel=4,
            )
        else:
            if network is not None:
                drafts = None if guesses is None else Drafts(guesses, slots=slots)
                step = compiled_step(network.device.type) if compiled else None
                return DecoderEngine(network, slots=slots, drafts=drafts, static_step=step)
    if compiled:
        warnings.warn(
            f"{type(model).__name__} is sampled through its own forward, which compiled=True does not compile",
            RuntimeWarning,
            stacklevel=4,
        )
    return HFEngine(model, slots=slots)


def _metrics(work: Work, num_tokens: int, seconds: float, *, has_drafts: bool) -> dict[str, float]:
    metrics = {
        "generate/tokens_per_second": num_tokens / seconds,
        "generate/is_fast": float(work.is_fast),
        "generate/seconds": seconds,
        "generate/prefill_seconds": work.prefill_seconds,
        "generate/decode_steps": float(work.decode_steps),
        "generate/padding_waste": work.padding_waste,
        "generate/cache_bytes": float(work.cache_bytes),
    }
    if has_drafts:
        metrics["generate/draft_tokens"] = float(work.draft_tokens)
        metrics["generate/draft_acceptance"] = work.draft_acceptance
    return metrics
