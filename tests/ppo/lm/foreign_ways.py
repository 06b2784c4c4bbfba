"""The ways of :mod:`tests.ppo.lm.stand_in`: each writes a stranger's files and loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

import ppo
from ppo.checkpoint import state_sha256
from ppo.lm.load import load_causal, load_pretrained
from rewards.bertscore import BertScore
from tests import fuzz
from tests.fakes import tiny_gpt2

KERNEL = "kernels-community/flash-attn"
SIZE = {
    "vocab_size": 2048,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def ways(folder: Path) -> dict[str, Callable[[], Any]]:
    """Name -> what to do. "control" does without this library and must be caught by the stand-in."""
    return {
        "control": lambda: _plainly(_llama(folder / "control", {"attn_implementation": KERNEL})),
        "attention": lambda: load_causal(_llama(folder / "attention", {"attn_implementation": KERNEL})),
        "own attention": lambda: load_causal(_llama(folder / "own", {"_attn_implementation": KERNEL})),
        "of anybody": lambda: load_causal(_llama(folder / "any", {"attn_implementation": "anybody/anything@main"})),
        "flash": lambda: load_causal(_llama(folder / "flash", {"attn_implementation": "flash_attention_2"})),
        "experts": lambda: load_causal(_llama(folder / "experts", {"experts_implementation": "sonicmoe"})),
        **{f"quantised {m}": _quantised(folder, m) for m in ("mxfp4", "eetq", "fbgemm_fp8", "fp8", "metal", "own")},
        "checkpoint": lambda: _checkpoint(folder / "checkpoint", KERNEL),
        "checkpoint in parts": lambda: _checkpoint(folder / "parts", {"": "eager", "text_config": KERNEL}),
        "encoder": lambda: BertScore.load(str(_bert(folder / "encoder", KERNEL)), device="cpu"),
        "adapter": lambda: load_causal(_adapter(folder / "adapter")),
        "generation": lambda: _generates(folder / "generation"),
        "state-space model": lambda: _mamba(folder / "mamba"),
        "harmless": lambda: load_causal(_llama(folder / "harmless", {"attn_implementation": "eager"})),
    }


def _llama(folder: Path, changes: dict[str, Any]) -> Path:
    LlamaForCausalLM(LlamaConfig(**SIZE)).save_pretrained(folder)
    return _changed(folder, changes)


def _changed(folder: Path, changes: dict[str, Any]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def _plainly(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _quantised(folder: Path, method: str) -> Callable[[], Any]:
    changes = {"quantization_config": {"quant_method": method}}
    return lambda: load_causal(_llama(folder / f"quantised-{method}", changes))


def _checkpoint(folder: Path, attention: Any) -> None:
    def reward(samples: list[ppo.types.Sample]) -> list[float]:
        return [0.0 for _ in samples]

    config = ppo.Config(prompts_per_step=2, minibatch=2, response_length=2)
    ppo.Trainer(tiny_gpt2(), [[2], [3]], reward, config).save(folder)
    state = json.loads((folder / "state.json").read_text()) | {"attention": attention}
    (folder / "state.json").write_text(json.dumps(state | {"state_sha256": state_sha256(state)}))
    ppo.Trainer.resume(folder, [[2], [3]], reward)


def _bert(folder: Path, attention: str) -> Path:
    BertModel(BertConfig(**SIZE, max_position_embeddings=32), add_pooling_layer=False).save_pretrained(folder)
    fuzz.load_tokenizer().save_pretrained(folder)
    return _changed(folder, {"attn_implementation": attention})


def _adapter(folder: Path) -> Path:
    _llama(folder, {})
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "anybody/anything", "auto_mapping": None}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


def _generates(folder: Path) -> None:
    """Code beside the weights that transformers' own ``generate`` would take, and classes that a processor names."""
    _llama(folder, {})
    fuzz.load_tokenizer().save_pretrained(folder)
    (folder / "custom_generate").mkdir()
    code = "import os\nopen(os.environ['CANARY'], 'a').write('custom_generate\\n')\ndef generate(*a, **k): pass\n"
    for file in ("custom_generate/generate.py", "theirs.py"):
        (folder / file).write_text(code + "class Theirs: pass\n")
    names = {"auto_map": {"AutoProcessor": "theirs.Theirs", "AutoTokenizer": ["theirs.Theirs", None]}}
    for file in ("processor_config.json", "preprocessor_config.json"):
        (folder / file).write_text(json.dumps(names | {"processor_class": "Theirs"}))
    for file, more in (("tokenizer_config.json", names), ("generation_config.json", {"custom_generate": str(folder)})):
        known = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(known | more))
    model, _ = load_pretrained(folder)
    ppo.generate(model, [[1, 2]], ppo.Sampling(response_length=2))


def _mamba(folder: Path) -> None:
    size = {"vocab_size": 61, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
    MambaForCausalLM(MambaConfig(**size)).save_pretrained(folder)
    ppo.generate(load_causal(folder), [[1, 2]], ppo.Sampling(response_length=2))
