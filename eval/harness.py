"""The adapter to EleutherAI's harness (extra ``harness``) for a model in memory.

Only this module imports ``lm_eval``. Log-likelihoods come from a teacher-forced pass, and text from ``ppo.generate``.
The harness's tasks download their data from a hub unless they name local files.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ppo.config import Sampling
from ppo.generation import generate
from ppo.io.surrogates import without_surrogates
from ppo.lm.backbone import context_length

try:
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise ImportError("EleutherAI's harness is not installed: pip install 'ppo-lm[harness]'") from error

from .perplexity import windows
from .teacher import teacher_force
from .utility import encode_pair

PAPER_TASKS = (
    "lambada_openai", "hellaswag", "winogrande", "copa", "arc_easy", "arc_challenge", "piqa", "mathqa", "pubmedqa",
)  # fmt: skip
"""The nine tasks of the DeMem paper's accuracy."""

DEFAULT_NEW_TOKENS = 256


class InMemory(LM):
    """A causal LM and its tokenizer with the interface of the harness. A context that is too long loses its start."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, batch_tokens: int = 8192, slots: int = 64) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.slots = slots
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise ValueError(f"{type(tokenizer).__name__} has neither a BOS nor an EOS token to start an empty context")
        self.start = int(start)
        self.limit = context_length(model)

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness caches requests."""
        return str(getattr(self.tokenizer, "name_or_path", type(self.tokenizer).__name__)).replace("/", "__")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(summed log-prob, whether greedy decoding writes it) of every continuation given its context."""
        pairs = []
        for context, continuation in (request.args for request in requests):
            head, tail = ([], self._encode(continuation)) if not context else encode_pair(
                self.tokenizer, context, continuation
            )  # fmt: skip
            pairs.append((head or [self.start], tail))
        return self._score(pairs)

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """(summed log-prob, whether every token is the argmax) of every second part given the first.

        An empty second part gives (0, True). The first part is cut at its start to fit the model's context, but keeps
        at least one token. If the second part does not fit either, it is scored in windows, every token once.
        """
        pieces: list[list[int]] = []
        starts: list[int] = []
        owners: list[int] = []
        for owner, (head, tail) in enumerate(pairs):
            room = len(head) if self.limit is None else max(self.limit - len(tail), 1)
            kept = head[-room:]
            ids = [*kept, *tail]
            for begin, first, end in windows(len(ids), self.limit) if tail else []:
                pieces.append(ids[begin:end])
                starts.append(max(first, len(kept)) - begin)
                owners.append(owner)
        found = teacher_force(self.model, pieces, starts=starts, batch_tokens=self.batch_tokens)
        answers = [(0.0, True)] * len(pairs)
        for owner, s in zip(owners, found, strict=True):
            total, is_right = answers[owner]
            answers[owner] = (total - s.nll, is_right and bool(s.is_right[s.start :].all()))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Summed log-prob of every text, given BOS. Long texts are scored in windows, every token once."""
        pairs = [([self.start], self._encode(text)) for (text,) in (request.args for request in requests)]
        return [total for total, _ in self._score(pairs)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations up to the first stop string or the length limit. Greedy unless the task asks for sampling."""
        texts = [""] * len(requests)
        together: dict[Sampling, list[int]] = {}
        for i, request in enumerate(requests):
            together.setdefault(self._sampling(request.args[1]), []).append(i)
        for sampling, members in together.items():
            room = None if self.limit is None else self.limit - sampling.response_length
            prompts = [self._encode(requests[i].args[0]) or [self.start] for i in members]
            prompts = prompts if room is None else [prompt[-room:] for prompt in prompts]
            generation = generate(self.model, prompts, sampling, slots=self.slots)
            for row, i in enumerate(members):
                ids = generation.tokens[row][generation.mask[row]].tolist()
                text = without_surrogates(self.tokenizer.decode(ids, skip_special_tokens=True))
                texts[i] = _until(text, requests[i].args[1].get("until", []))
        return texts

    def _sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """The sampler that the task's settings describe. Its length leaves room for one token of the prompt."""
        length = int(settings.get("max_gen_toks", settings.get("max_new_tokens", DEFAULT_NEW_TOKENS)))
        length = length if self.limit is None else max(1, min(length, self.limit - 1))
        if not settings.get("do_sample", False) or float(settings.get("temperature", 1.0)) == 0:
            return Sampling(response_length=length, temperature=0.0)
        return Sampling(
            response_length=length,
            temperature=float(settings.get("temperature", 1.0)),
            top_k=int(settings.get("top_k", 0)),
            top_p=float(settings.get("top_p", 1.0)),
        )

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _until(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first stop string."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str] = PAPER_TASKS,
    *,
    include: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """The metrics of every task, as the harness reports them, for a model in memory.

    ``include``: a folder with task files of your own. ``limit``: most documents per task. The harness's output is
    discarded; its errors are raised.
    """
    manager = TaskManager(include_path=str(include) if include is not None else None)
    with contextlib.redirect_stdout(io.StringIO()):
        found = lm_eval.simple_evaluate(
            model=InMemory(model, tokenizer),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return {
        task: {name: value for name, value in metrics.items() if isinstance(value, float)}
        for task, metrics in found["results"].items()
    }
