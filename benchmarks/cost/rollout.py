"""The work of a rollout on one device: prompts are read, then every row grows by one token at a time.

Products, attention and sampling come one after another in every step, so each of them is a piece of work of its own.
Two costs are not counted: products of a few rows do not reach the rate of many rows, and on a CPU each of a block's
small operations costs a call. So predictions are low; ``check.LEAST_OF_ROLLOUT`` says how low they may be.
"""

from __future__ import annotations

from .architecture import Architecture
from .attention import attention_operations, attention_rate
from .block import LAUNCHES, block_traffic
from .device import Rate, Work
from .parameters import count
from .plan import Plan
from .sending import gather, gather_blocks

_SAMPLING_SWEEPS = 8  # of a step's logits: copy, peak, exp2, sums, the search for the token
_SAMPLING_LAUNCHES = 40  # a step

PROBES = 2  # forwards before every rollout that look where the model can be cut; ppo.lm.backbone


def rollout_work(arch: Architecture, plan: Plan, *, packs_weights: bool) -> list[Work]:
    """A rollout in the precision of the weights, whatever the training's is. Every distinct prompt is computed once.

    ``packs_weights``: see :class:`Device`.
    """
    if plan.is_never_whole:
        return _by_blocks(arch, plan)
    rate: Rate = "bfloat16" if plan.precision == "bfloat16" else "float32"
    size, weights = plan.weight_bytes, decoded_weights(arch)
    copied = copied_weights(arch, plan, packs_weights=packs_weights)
    prompts, rows, steps = _shape(plan)
    prompt_tokens = prompts * plan.prompt_length
    last = arch.block_linear_weights - arch.width * (arch.query_width + 2 * arch.kv_width)  # one token a prompt
    prefill = 2 * (arch.layers * arch.block_linear_weights - last) * prompt_tokens + 2 * last * prompts
    prefill += 2 * arch.embedding_parameters * plan.own_sequences
    blocks = -(-prompt_tokens // 512)  # ppo.generation.admission reads 512 tokens in one pass
    touched = 10 * arch.width + 3 * arch.mlp_width
    return [
        gather("rollout", actor_bytes(arch, plan), plan),
        _prefill_attention(arch, plan, prompt_tokens, rate),
        Work("rollout", "bind", moved=size * (2 * copied + 3 * weights), rate=rate),
        Work(
            "rollout", "prefill", prefill, size * (weights * blocks + touched * arch.layers * prompt_tokens),
            launches=blocks * arch.layers * (LAUNCHES["decode"] + LAUNCHES["decode attention"]), rate=rate,
        ),
        Work(
            "rollout", "decode", steps * 2 * weights * rows, steps * size * weights,
            launches=steps * arch.layers * LAUNCHES["decode"], rate=rate,
        ),
        _decode_attention(arch, plan, steps, rows * mean_columns(plan), sweeps=1, rate=rate),
        _sampling(arch, plan, steps),
    ]  # fmt: skip


def _by_blocks(arch: Architecture, plan: Plan) -> list[Work]:
    """A rollout by the model's own forward, in float32. Each pass gathers all blocks, and nothing overlaps.

    A step reads the cache, writes it again with one more column, and reads it for attention.
    """
    counts, (prompts, rows, steps) = count(arch, plan), _shape(plan)
    prompt_tokens, waves = prompts * plan.prompt_length, -(-plan.own_sequences // rows)
    weights = arch.layers * arch.block_linear_weights
    beside = arch.layers * block_traffic(arch, "float32", keys=plan.length).forward
    columns = plan.prompt_length + plan.response_length / 2

    def forwards(name: str, passes: int, tokens: int, sampled: int) -> Work:
        output = arch.embedding_parameters * bool(sampled)
        operations = 2 * (weights * tokens + output * sampled)
        moved = 4 * (weights + output) * passes + beside * tokens
        own = LAUNCHES["forward"] - LAUNCHES["decode attention"]
        launches = passes * arch.layers * own * (2 if plan.lora_rank else 1)
        return Work("rollout", name, operations, moved, launches=launches)

    return [
        gather("rollout", plan.weight_bytes * counts.root, plan),
        gather_blocks("rollout", plan.weight_bytes * arch.layers * counts.block, plan, passes=PROBES + waves + steps),
        _prefill_attention(arch, plan, prompt_tokens, "float32"),
        forwards("probes", PROBES, 0, 0),
        forwards("prefill", waves, prompt_tokens, plan.own_sequences),
        forwards("decode", steps, steps * rows, steps * rows),
        _decode_attention(arch, plan, steps, rows * columns, sweeps=3, rate="float32"),
        _sampling(arch, plan, steps),
    ]


def _shape(plan: Plan) -> tuple[int, int, int]:
    """Distinct prompts, rows side by side, and their steps; the first token of a response comes with its prompt."""
    rows = min(plan.rollout_slots, plan.own_sequences)
    steps = -(-plan.own_sequences // rows) * (plan.response_length - 1)
    return plan.own_sequences // plan.samples, rows, steps


def _prefill_attention(arch: Architecture, plan: Plan, tokens: int, rate: Rate) -> Work:
    operations = attention_operations(arch, tokens, plan.prompt_length, arch.layers)
    return Work("rollout", "prefill, attention", operations, rate=attention_rate(rate))


def _decode_attention(arch: Architecture, plan: Plan, steps: int, cached: float, *, sweeps: int, rate: Rate) -> Work:
    """``cached``: columns of the cache over all rows; every layer and step sweeps keys and values ``sweeps`` times."""
    operations = 4 * steps * arch.layers * arch.query_width * cached
    moved = sweeps * plan.weight_bytes * 2 * steps * arch.layers * arch.kv_width * cached
    launches = steps * arch.layers * LAUNCHES["decode attention"]
    return Work("rollout", "decode, attention", operations, moved, launches=launches, rate=attention_rate(rate))


def _sampling(arch: Architecture, plan: Plan, steps: int) -> Work:
    """Sampling of every token from float32 logits; that of a response's first token comes with its prompt."""
    moved = _SAMPLING_SWEEPS * 4 * arch.vocabulary * plan.own_sequences * plan.response_length
    return Work("rollout", "sampling", moved=moved, launches=(steps + 1) * _SAMPLING_LAUNCHES)


def decoded_weights(arch: Architecture) -> int:
    """Weights in the products of every decoding step: the blocks and the output layer."""
    return arch.layers * arch.block_linear_weights + arch.embedding_parameters


def copied_weights(arch: Architecture, plan: Plan, *, packs_weights: bool) -> int:
    """Weights that the fast decoder copies for a rollout: all that it packs, joins or adds an adapter to."""
    if packs_weights:
        return decoded_weights(arch)
    return arch.layers * (arch.block_linear_weights if plan.lora_rank else arch.joined_weights)


def mean_columns(plan: Plan) -> float:
    """Mean columns of the key/value cache, which is wider than the sequences in it; see ``ppo.generation.cache``."""
    middle = plan.prompt_length + plan.response_length / 2
    return min(plan.length, middle + max(24, middle / 8) / 2)


def actor_bytes(arch: Architecture, plan: Plan) -> float:
    """Bytes of the whole policy and critic, which a rollout under FSDP2 gathers."""
    counts = count(arch, plan)
    return plan.weight_bytes * (counts.policy + counts.critic)
