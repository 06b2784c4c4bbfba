"""Who asks for a device gets it everywhere: names, loaded models, critics, references, encoders, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import demem
import ppo
from models.load import load
from models.lora import LoraConfig, add_lora, linear_targets
from ppo.compat import trl
from ppo.lm.device import accelerator, resolve_device
from rewards.bertscore import BertScore
from rewards.counterfactual import CounterfactualReference
from tests.accelerator.device import DEVICE
from tests.fakes import Letters, TableCritic, tiny_gpt2, tiny_llama
from tests.unlearning.test_demem import write_rows

CPU = torch.device("cpu")
PROMPTS = [[2, 3, 4], [5], [6, 7], [8, 9]]
CONFIG = ppo.Config(prompts_per_step=4, minibatch=2, response_length=5, epochs=1, retain_coef=0.5, retain_loss="kl",
                    retain_sequences=2, retain_tokens=4, eval_every_steps=1)  # fmt: skip
RETAIN = [[2, 3, 4, 5, 6, 7]] * 3


class Tokenizer(Letters):
    def save_pretrained(self, folder):
        """Write nothing: these tests hand it in again."""


@pytest.fixture
def folder(tmp_path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def reward(samples):
    return [float(len(s.ids)) for s in samples]


def make(model, **more):
    return ppo.Trainer(
        model, PROMPTS, reward, CONFIG, tokenizer=Tokenizer(), retain=RETAIN, eval_prompts=PROMPTS, **more
    )


def places(module: nn.Module) -> set[torch.device]:
    return {tensor.device for tensor in (*module.parameters(), *module.buffers())}


def test_torch_names_the_accelerator():
    assert accelerator() == "pretend"
    assert resolve_device("auto") == resolve_device("pretend") == DEVICE
    with pytest.raises(ValueError, match="device=pretend:1 is not there: this machine has cpu, pretend:0; take one"):
        resolve_device("pretend:1")


@pytest.mark.parametrize("device", [None, "auto", "pretend", "pretend:0", DEVICE])
def test_a_name_goes_there_with_all_that_a_run_has(folder, device, capfd):
    run = make(folder, device=device)
    run.train(1)
    assert "PPO on pretend:0" in capfd.readouterr().err
    assert places(run.policy.actor) == {DEVICE}
    assert places(run.collector.reference.model) == {DEVICE}
    rollout = run.rollout()
    assert {x.device for x in vars(rollout).values() if isinstance(x, torch.Tensor)} == {DEVICE}
    moments = [x for name, x in run.learner.optimizer.state_tensors().items() if not name.endswith("/step")]
    assert {x.device for x in moments} == {DEVICE}


def test_a_loaded_model_stays_and_an_explicit_device_moves_it_in_place(folder):
    model = tiny_llama()
    assert make(model).device == CPU
    assert make(model, device="auto").model is model
    assert places(model) == {DEVICE}
    assert make(model, device="cpu").device == CPU
    assert make(folder, device="cpu").device == CPU


def test_half_precision_by_name(folder):
    run = make(folder, dtype="bfloat16")
    assert {p.dtype for p in run.model.parameters()} == {torch.bfloat16}
    run.update(run.rollout())
    assert places(run.policy.actor) == {DEVICE}


def test_a_resumed_run_goes_where_it_was_saved_or_where_it_is_asked_to(folder, tmp_path):
    make(folder).save(tmp_path / "there")
    make(folder, device="cpu").save(tmp_path / "here")

    def resumed(name, **more):
        return ppo.Trainer.resume(
            tmp_path / name, PROMPTS, reward, tokenizer=Tokenizer(), retain=RETAIN, eval_prompts=PROMPTS, **more
        )

    assert [resumed(name).device for name in ("there", "here")] == [DEVICE, CPU]
    assert [resumed(name, device=place).device for name, place in (("there", "cpu"), ("here", "auto"))] == [CPU, DEVICE]
    run = resumed("here", device=DEVICE)
    assert places(run.collector.reference.model) == {DEVICE}
    run.update(run.rollout())


def test_a_given_model_is_moved_where_a_resumed_run_is_asked_to_go(tmp_path):
    def adapted():
        torch.manual_seed(0)
        model = tiny_gpt2()
        add_lora(model, LoraConfig(linear_targets(model), rank=2))
        return model

    more = {"tokenizer": Tokenizer(), "retain": RETAIN, "eval_prompts": PROMPTS}
    make(adapted(), device="auto").save(tmp_path / "checkpoint")
    for place, expected in (("auto", DEVICE), ("cpu", CPU), (None, CPU)):  # None: where the given model is
        run = ppo.Trainer.resume(tmp_path / "checkpoint", PROMPTS, reward, model=adapted(), device=place, **more)
        assert places(run.policy.actor) == {expected}
        run.update(run.rollout())


def test_an_own_critic_follows_the_model(folder):
    critic = TableCritic()
    run = make(folder, value=critic)
    assert places(critic) == {DEVICE}
    run.update(run.rollout())
    back = make(tiny_llama(), value=critic)
    assert places(critic) == {CPU}
    back.update(back.rollout())


@pytest.mark.parametrize("kind", [ppo.FrozenReference, CounterfactualReference])
@pytest.mark.parametrize("place", ["cpu", "auto"])
def test_a_reference_answers_from_another_device(folder, kind, place):
    reference = kind(tiny_llama(seed=1).eval(), CONFIG.sampling())
    asked = ppo.generate(folder, PROMPTS, CONFIG.sampling(), tokenizer=Tokenizer(), device=place)
    run = make(folder, device=place, reference=reference)
    samples = run.rollout().samples
    answer = reference.logprobs(asked, samples)
    assert answer.device == resolve_device(place)
    expected = reference.logprobs(asked.to(CPU), samples)
    assert torch.equal(answer.cpu(), expected)


def test_generate_by_name(folder):
    there = ppo.generate(folder, PROMPTS, CONFIG.sampling(), tokenizer=Tokenizer())
    here = ppo.generate(folder, PROMPTS, CONFIG.sampling(), tokenizer=Tokenizer(), device="cpu")
    assert (there.tokens.device, here.tokens.device) == (DEVICE, CPU)
    assert torch.equal(there.tokens.cpu(), here.tokens)


def test_an_old_trl_script_goes_to_the_accelerator():
    wrap = trl.AutoModelForCausalLMWithValueHead
    assert places(wrap.from_pretrained(tiny_gpt2(), device_map={"": 0})) == {DEVICE}
    assert places(wrap.from_pretrained(tiny_gpt2(), device_map="auto")) == {DEVICE}
    queries = [torch.tensor(prompt) for prompt in PROMPTS]
    for settings, expected in (({}, DEVICE), ({"accelerator_kwargs": {"cpu": True}}, CPU)):
        config = trl.PPOConfig(batch_size=4, mini_batch_size=2, **settings)
        trainer = trl.PPOTrainer(config, wrap(tiny_gpt2()), wrap(tiny_gpt2()))
        assert trainer.accelerator.device == trainer.current_device == expected
        assert places(trainer.model) == places(trainer.ref_model) == {expected}
        responses = trainer.generate(queries, return_prompt=False, max_new_tokens=4, pad_token_id=0)
        assert {r.device for r in responses} == {expected}
        trainer.step(queries, responses, [torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.0), torch.tensor(1.0)])


def test_an_encoder_goes_there(tmp_path):
    import transformers as hf

    config = hf.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    hf.BertModel(config).save_pretrained(tmp_path)
    tokenizer = load("lab").tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    for device, expected in (("auto", DEVICE), ("cpu", CPU)):
        assert places(BertScore.load(str(tmp_path), device=device).encoder) == {expected}
    with pytest.raises(ValueError, match="device=cuda is not there"):
        BertScore.load("no-such-encoder", device="cuda")


def test_demem_from_the_command_line(tmp_path):
    data, out = write_rows(tmp_path / "rows.jsonl", 8), tmp_path / "run"
    groups = "--num-forget 4 --num-holdout 2 --num-never 2 --num-samples 0 --num-own 2 --steps 1"
    sizes = "--prompts-per-step 4 --minibatch 4 --epochs 1 --retain-sequences 2 --retain-tokens 20"
    assert demem.main(f"run --data {data} --out {out} --dtype bfloat16 {groups} {sizes}".split()) == 0
    written = json.loads((out / "evaluation.json").read_text())["meta"]
    assert (written["device"], written["dtype"]) == ("pretend", "bfloat16")
    assert json.loads((out / "config.json").read_text())["options"]["device"] == "auto"
    state = next((out / "checkpoints").glob("step-*")) / "state.json"
    assert json.loads(state.read_text())["device"] == "pretend:0"
    assert {x.dtype for x in load_file(out / "model" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.slow
def test_every_command_of_demem_runs_there(tmp_path):
    """None mixes devices: training with an adapter and a fluency band, resumed, all attacks, all rivals, a trace."""
    groups = f"--data {write_rows(tmp_path / 'rows.jsonl', 10)} --num-forget 4 --num-holdout 2 --num-never 2"
    small = "--prompts-per-step 4 --minibatch 4 --epochs 1 --retain-sequences 2 --retain-tokens 20 --num-own 2"
    few = "--attack-samples 1 --relearning-steps 1 --temperatures 1.0 --top-ks 0 --beams 2 --hints 1 --shortened-to 5"
    rivals = "demem,deep,distil-deep,kl-deep,ul,graddiff,npo,simnpo,distil,dp,dp-logits,memfree"
    run = tmp_path / "run"
    for words in (
        f"memorise {groups} --memorise-epochs 1 --minibatch 4 --memorise-beside 2 --out {tmp_path / 'memorised'}",
        f"train --preset demem {groups} {small} --steps 1 --num-samples 1 --lora-rank 2 --fluency-weight 0.1 "
        f"--out {run}",
        f"train --resume --steps 2 --out {run}",
        f"evaluate --out {run}",
        f"attacks --out {run} {few}",
        f"scan --corpus {demem.__file__} --controls 1 --against-model lab:retain-only --canaries 2 "
        f"--out {tmp_path / 'scan'}",
        f"scan --against {tmp_path / 'scan'} --controls 1 --dtype bfloat16 --out {tmp_path / 'after'}",
        f"trace {groups} --prompts-per-step 4 --minibatch 4 --out {tmp_path / 'trace'}",
        f"trace --preset demem {groups} --prompts-per-step 4 --minibatch 4 --out {tmp_path / 'trace-demem'}",
        f"compare {groups} --prompts-per-step 4 --minibatch 4 --steps 1 --seeds 1 --knobs one --num-samples 0 "
        f"--methods {rivals} --out {tmp_path / 'compare'}",
    ):
        assert demem.main(words.split()) == 0, words
