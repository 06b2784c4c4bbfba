"""``generate``: responses to prompts from any causal LM, with all that PPO needs to know about them."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..config import Sampling
from ..io.plain import is_whole
from ..lm.backbone import evaluation_mode, vocabulary_size
from ..lm.device import device_of, resolve_for
from ..lm.load import load_model
from ..types import Generation, ValueFn
from .decoders import Unsupported, bind
from .engine import DecoderEngine
from .hf.engine import HFEngine
from .requests import Requests, read_requests
from .speculative import Drafts, read_drafts
from .static import compiled_step, static_width
from .transcript import Transcript
from .turns import Dialogue, Turns
from .work import Work


@torch.no_grad()
def generate(
    model: nn.Module | str | Path,
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
    turns: Turns | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Generation:
    """Sample ``sampling.num_samples`` responses to every prompt.

    ``model``: a loaded causal LM, or a hub id or a folder, which every call loads again, with its tokenizer. For more
    than one call, load it yourself. ``device`` and ``dtype`` are as in :class:`ppo.Trainer`: a name goes to "auto" in
    float32, a loaded model stays as it is unless a ``device`` is given, which moves it in place.

    ``prompts``: token-id lists, or with ``tokenizer`` strings and chat messages, or dicts with "prompt". Rows come back
    in request order, the samples of one prompt next to each other. T is the length of the longest response. Padding
    holds id 0, so only the masks say what is real.

    ``seed`` and a request's id (``request_ids``, by default 0, 1, 2, … in row order) fix its random numbers. So a
    sample depends neither on ``slots`` (the most sequences decoded at the same time) nor on its neighbours, beyond
    rounding.

    ``drafts`` are guesses at responses, as token ids, one a response or one a prompt. Memorised text is such a guess,
    the last step's responses are another. A right guess saves time. Samples are the same with drafts and without, up
    to rounding, which in bfloat16 is coarse (see ``speculative.py``). The fast decoders check drafts as long as enough
    of their tokens are right. The model's own forward ignores them.

    ``value_fn`` is called with the hidden states [N, H] that tokens are sampled from, and returns [N], V before the
    token. The hidden states are inference tensors: nothing can be trained through them.

    ``engine="hf"`` always uses the model's own forward. "auto" uses a fast decoder if there is one for the model's
    family, it reproduces the model's own logits, and all weights are whole (:mod:`ppo.distributed.sharding`). The
    model runs in eval mode and in its own dtype (autocast is off); tokens are sampled in float32. The tensors that
    come back are on the model's device and may be used in training.

    ``compiled=True`` decodes with a step of static shapes that ``torch.compile`` takes as one graph. Samples are the
    same, up to rounding. It is meant for CUDA, where it was never run; on the CPU it needs a C++ compiler and time to
    compile (docs/performance.md). If the model has no fast decoder, it changes nothing and warns.

    ``turns``: responses of several turns, with answers in between (:class:`ppo.generation.turns.Turns`). A row keeps
    its cache between turns. ``action_mask`` is False on the answers; ``is_ended`` says that the last answer was None.

    Raises ValueError, with value and remedy, for bad prompts, ids, lengths and options.
    """
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling={sampling!r:.80} must be a ppo.Sampling, such as ppo.Sampling(temperature=0.7)")
    if not is_whole(slots) or slots < 1:
        raise ValueError(f"slots={slots!r:.60} must be a whole number, at least 1")
    if not is_whole(seed):
        raise ValueError(f"seed={seed!r:.60} must be a whole number")
    if engine not in ("auto", "hf"):
        raise ValueError(f"engine={engine!r} must be 'auto' or 'hf'")
    if compiled and engine == "hf":
        raise ValueError("compiled=True compiles the step of a fast decoder: take engine='auto'")
    if turns is not None and drafts is not None:
        raise ValueError("drafts guess a whole response, which nobody can with turns: give one of the two")
    place = resolve_for(model, device)
    if place is not None or dtype is not None:
        model, tokenizer = load_model(model, tokenizer, device=place, dtype=dtype)
    assert isinstance(model, nn.Module)
    requests = read_requests(model, prompts, sampling, tokenizer=tokenizer, seed=seed, request_ids=request_ids)
    at = device_of(model)
    guesses = None if drafts is None else read_drafts(drafts, requests, vocabulary_size(model))
    dialogue = None if turns is None else Dialogue(turns, requests, at, vocabulary_size(model))
    transcript = Transcript(requests, at, value_fn, dialogue)
    started = time.perf_counter()
    with evaluation_mode(model), torch.autocast(at.type, enabled=False):
        chosen = _engine(model, requests, guesses, slots=min(slots, len(requests)), engine=engine, compiled=compiled)
        # The transcript was made outside inference mode, so its tensors may be used in training. HFEngine runs without
        # inference mode, because a model's own forward may keep tensors.
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
    """The fast engine if the model's family has a decoder that reproduces it, else the model's own forward."""
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
