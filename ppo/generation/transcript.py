"""What has been sampled so far, request by request. This is the one place where tokens are chosen and responses end.

An engine decides which requests advance together, in any order, and computes their logits. A token may be drawn and
not noted: a draft is checked a few tokens further than it turns out to be right.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..lm.distribution import early_steps
from ..types import Generation, ValueFn
from .requests import Requests
from .sampling import Draw, draw_in_parts, read
from .turns import Dialogue


class Transcript:
    """Tokens, log-probs, entropy and values of R requests, [R, T] each. An engine fills them in.

    ``dialogue``: of responses of several turns; None: each response is one turn.
    """

    def __init__(
        self, requests: Requests, device: torch.device, value_fn: ValueFn | None, dialogue: Dialogue | None = None
    ) -> None:
        count, length = len(requests), requests.sampling.response_length
        self._requests = requests
        self.sampling = requests.sampling
        self._value_fn = value_fn
        self._dialogue = dialogue
        self._eos = torch.tensor(requests.sampling.eos_ids, dtype=torch.long, device=device)
        self._uniforms = requests.uniforms.to(device)
        self._tokens = torch.zeros(count, length, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(count, length, dtype=torch.float32, device=device)
        self._entropy = torch.zeros(count, length, dtype=torch.float32, device=device)
        self._values = torch.zeros(count, length, dtype=torch.float32, device=device) if value_fn is not None else None
        self._lengths = torch.zeros(count, dtype=torch.long, device=device)

    def advance(self, rows: Tensor, logits: Tensor, hidden: Tensor) -> tuple[Tensor, list[bool]]:
        """Choose and note the next token of the requests ``rows`` int64 [N] (each at most once).

        ``logits`` [N, V] are overwritten if float32. ``hidden`` [N, H] are the states that they were computed from; the
        value function sees them. Returns the tokens int64 [N], and of each request whether it is now finished.
        Raises ValueError for logits that are no distribution.
        """
        drawn, total = self.draw(rows, self._lengths[rows], logits)
        return self.follow(rows, drawn, total, hidden)

    def follow(self, rows: Tensor, drawn: Draw, total: Tensor, hidden: Tensor) -> tuple[Tensor, list[bool]]:
        """Note the next tokens of the requests ``rows`` [N]: the drawn ones, or those of an answer to a turn.

        ``total`` [N]: the weights that :func:`ppo.generation.sampling.check` wants to see. Returns what
        :meth:`advance` returns. Here the host waits for the device, and nowhere else in a decoding step.
        """
        steps = self._lengths[rows]
        if self._dialogue is not None:
            drawn = replace(drawn, tokens=self._dialogue.overwrite(rows, steps, drawn.tokens))
        self.note(rows, steps, drawn, hidden)
        if self._dialogue is None:
            return drawn.tokens, read(self._is_finished(drawn.tokens, steps), total)
        numbers, count = read(torch.cat([rows, steps, drawn.tokens]), total), len(rows)
        requests, places, tokens = numbers[:count], numbers[count:-count], numbers[-count:]
        return drawn.tokens, self._dialogue.is_finished(requests, places, tokens)

    def next_draw(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """For the next token of each request in ``rows`` [N]: its uniform float32 [N], and whether it may not be EOS,
        bool [N]. Finished requests may be among them.
        """
        steps = self._lengths[rows]
        uniforms = self._uniforms[rows, steps.clamp(max=self._uniforms.shape[1] - 1)]
        return uniforms, early_steps(steps, self.sampling)

    def draw(self, rows: Tensor, steps: Tensor, logits: Tensor) -> tuple[Draw, Tensor]:
        """Draw token ``steps`` [N] of the requests ``rows`` [N] from logits [N, V] (overwritten if float32).

        The second result is for :func:`ppo.generation.sampling.read`, which must see it.
        """
        is_early = early_steps(steps, self.sampling)
        return draw_in_parts(logits.float(), self._uniforms[rows, steps], self.sampling, is_early)

    def note(self, rows: Tensor, steps: Tensor, drawn: Draw, hidden: Tensor) -> None:
        """Keep what was drawn. A request may come several times; its steps must follow what was noted before."""
        self._tokens[rows, steps] = drawn.tokens
        self._logprobs[rows, steps] = drawn.logprobs
        self._entropy[rows, steps] = drawn.entropy
        if self._values is not None and self._value_fn is not None:
            self._values[rows, steps] = self._value_fn(hidden).float()
        self._lengths.scatter_reduce_(0, rows, steps + 1, "amax")

    def is_finished(self, requests: list[int], steps: list[int], tokens: list[int]) -> list[bool]:
        """Whether responses end with ``tokens``, which were noted at index ``steps``; all of them known to the host."""
        if self._dialogue is not None:
            return self._dialogue.is_finished(requests, steps, tokens)
        length, ends = self.sampling.response_length, self.sampling.eos_ids or ()
        return [step + 1 >= length or token in ends for step, token in zip(steps, tokens, strict=True)]

    def _is_finished(self, tokens: Tensor, steps: Tensor) -> Tensor:
        """The same on the device, for responses of one turn: bool [N]."""
        is_finished = steps + 1 >= self.sampling.response_length
        if self._eos.numel():
            is_finished |= torch.isin(tokens, self._eos)
        return is_finished

    @property
    def num_tokens(self) -> int:
        """Response tokens so far, those of answers among them."""
        return int(self._lengths.sum())

    def generation(self, metrics: dict[str, float]) -> Generation:
        """The finished batch in request order. T is the length of the longest response."""
        length = int(self._lengths.max())
        prompt_ids, prompt_mask = self._requests.padded_prompts(self._tokens.device)
        last = self._tokens.gather(1, self._lengths.unsqueeze(-1) - 1).squeeze(-1)
        generation = Generation(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            tokens=self._tokens[:, :length].contiguous(),
            mask=torch.arange(length, device=self._tokens.device) < self._lengths.unsqueeze(-1),
            logprobs=self._logprobs[:, :length].contiguous(),
            entropy=self._entropy[:, :length].contiguous(),
            is_ended=torch.isin(last, self._eos),
            values=None if self._values is None else self._values[:, :length].contiguous(),
            metrics=metrics,
        )
        return generation if self._dialogue is None else _of_several_turns(generation, self._dialogue)


def _of_several_turns(generation: Generation, dialogue: Dialogue) -> Generation:
    """The generation with its action mask; what was measured where an answer was written is 0."""
    actions = dialogue.action_mask[:, : generation.tokens.shape[1]] & generation.mask
    values = None if generation.values is None else generation.values * actions
    return replace(
        generation,
        action_mask=actions,
        logprobs=generation.logprobs * actions,
        entropy=generation.entropy * actions,
        values=values,
        is_ended=dialogue.is_ended,
    )
