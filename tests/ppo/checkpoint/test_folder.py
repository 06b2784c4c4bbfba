"""A checkpoint appears whole or not at all, is refused when damaged, and resumes to the same bits."""

import json
import os
import shutil
import signal

import pytest
import torch

from ppo import Config, Trainer
from ppo.checkpoint import folder as checkpoint
from tests.fakes import tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10], [11], [12, 13]]
CONFIG = Config(
    prompts_per_step=4, minibatch=2, response_length=5, epochs=2, learning_rate=1e-2, scale_scores=True,
    retain_coef=0.5, retain_loss="kl", retain_tokens=8, retain_sequences=2, warmup_steps=2, schedule="linear",
    total_steps=20,
)  # fmt: skip
RETAIN = [[2, 4, 6, 8, 10, 12]]


def noisy(samples):
    """A reward that draws from torch's global generator, so the checkpoint must hold that generator's state."""
    return [s.ids.count(5) + float(torch.rand(())) for s in samples]


def everything(trainer):
    parts = [p.detach().flatten().double() for p in trainer.policy.actor.parameters()]
    parts += [t.flatten().double() for _, t in sorted(trainer.learner.optimizer.state_tensors().items())]
    return torch.cat([*parts, torch.tensor([trainer.kl.coef, trainer.scorer.moments.mean, trainer.step]).double()])


@pytest.mark.parametrize("head", ["linear", "mlp", "critic"])
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_resume_goes_on_bit_for_bit(tmp_path, head, make):
    config = CONFIG.replace(value_head=head)
    torch.manual_seed(0)
    trainer = Trainer(make(), PROMPTS, noisy, config, retain=RETAIN)
    trainer.train(2, progress=False)
    trainer.save(tmp_path / "ckpt")
    trainer.train(3, progress=False)
    torch.manual_seed(99)
    resumed = Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN)
    assert resumed.config == config
    resumed.train(3, progress=False)
    assert torch.equal(everything(trainer), everything(resumed))


def test_resume_from_a_run_folder_drops_later_steps(tmp_path):
    config = CONFIG.replace(save_every_steps=2, keep_checkpoints=2)
    torch.manual_seed(0)
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, config, retain=RETAIN, out=tmp_path)
    trainer.train(7, progress=False)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path / "checkpoints")] == ["step-000006", "step-000007"]
    first, second = (tmp_path / "checkpoints" / n / "reference.safetensors" for n in ("step-000006", "step-000007"))
    assert os.stat(first).st_ino == os.stat(second).st_ino
    shutil.rmtree(tmp_path / "checkpoints" / "step-000007")  # as if the run had been killed in step 6
    resumed = Trainer.resume(tmp_path, PROMPTS, noisy, retain=RETAIN, out=tmp_path)
    assert resumed.step == 6
    resumed.train(1, progress=False)
    assert torch.equal(everything(trainer), everything(resumed))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(7))


def test_the_model_folder_is_a_plain_hugging_face_checkpoint(tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN)
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "ckpt")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ckpt" / "model", output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]
    ids = torch.tensor([PROMPTS[0]])
    assert torch.equal(model.eval()(ids).logits, trainer.model.eval()(ids).logits)


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_taken(tmp_path):
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG.replace(save_every_steps=1), retain=RETAIN, out=tmp_path)
    trainer.train(2, progress=False)
    newest = tmp_path / "checkpoints" / "step-000002"
    file = newest / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"optimizer.safetensors is damaged"):
        Trainer.resume(newest, PROMPTS, noisy, retain=RETAIN)
    with pytest.warns(RuntimeWarning, match=r"optimizer.safetensors is damaged.*: going on from .*step-000001") as said:
        assert Trainer.resume(tmp_path, PROMPTS, noisy, retain=RETAIN).step == 1
    assert len(said) == 1
    (newest / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"state.json is damaged"):
        Trainer.resume(newest, PROMPTS, noisy, retain=RETAIN)
    (newest / "state.json").unlink()
    with pytest.warns(RuntimeWarning, match=r"step-000002/state.json is missing: going on from"):
        assert Trainer.resume(tmp_path, PROMPTS, noisy, retain=RETAIN).step == 1


@pytest.mark.parametrize(
    ("line", "other"),
    [('"kl_coef": 0.05', '"kl_coef": 0.06'), ('"step": 2', '"step": 3'), ('"minibatch": 2', '"minibatch": 4'),
     ('"state_sha256"', '"state_sha257"')],
)  # fmt: skip
def test_a_single_changed_digit_in_the_numbers_is_damage(tmp_path, line, other):
    config = CONFIG.replace(save_every_steps=1, kl_controller="fixed", kl_coef=0.05)
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, config, retain=RETAIN, out=tmp_path)
    trainer.train(2, progress=False)
    file = tmp_path / "checkpoints" / "step-000002" / "state.json"
    text = file.read_text()
    assert line in text
    file.write_text(text.replace(line, other, 1))
    with pytest.warns(
        RuntimeWarning, match=r"step-000002/state.json is damaged: .*SHA-256.*: going on from .*step-000001"
    ):
        assert Trainer.resume(tmp_path, PROMPTS, noisy, retain=RETAIN).step == 1


def test_a_checkpoint_of_the_previous_format_is_read(tmp_path):
    """It has no checksum of its numbers, no hash of its prompts."""
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN)
    trainer.train(1, progress=False)
    file = trainer.save(tmp_path / "ckpt") / "state.json"
    state = json.loads(file.read_text()) | {"format": 1}
    for name in ("state_sha256", "prompts_sha256", "retain_sha256"):
        del state[name]
    file.write_text(json.dumps(state))
    resumed = Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN)
    assert torch.equal(everything(trainer), everything(resumed))
    file.write_text(json.dumps(state | {"format": 3}))
    with pytest.raises(ValueError, match="has checkpoint format 3; this version reads 1 to 2"):
        Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN)


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path):
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN)
    trainer.save(tmp_path / "ckpt")

    def killed(folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_atomically(tmp_path / "ckpt", killed)
    assert Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN).step == 0
    os.replace(tmp_path / "ckpt", tmp_path / "ckpt.old")  # killed between the two renames
    assert Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN).step == 0
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "ckpt")
    assert Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt"]


def test_resuming_with_other_prompts_is_refused(tmp_path):
    Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN).save(tmp_path / "ckpt")
    with pytest.raises(ValueError, match="saved with 6 prompts, resume got 5"):
        Trainer.resume(tmp_path / "ckpt", PROMPTS[:5], noisy, retain=RETAIN)
    with pytest.raises(ValueError, match="holds no checkpoint"):
        Trainer.resume(tmp_path / "nowhere", PROMPTS, noisy, retain=RETAIN)


def test_prompts_in_another_order_are_refused_and_other_retain_texts_warn(tmp_path):
    Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN).save(tmp_path / "ckpt")
    for other in (PROMPTS[::-1], [*PROMPTS[:5], [12, 14]], [[2, 3], [4, 5, 6], *PROMPTS[2:]]):
        with pytest.raises(ValueError, match="saved with other prompts, or in another order"):
            Trainer.resume(tmp_path / "ckpt", other, noisy, retain=RETAIN)
    with pytest.warns(RuntimeWarning, match="saved with other texts to keep"):
        Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=[[2, 4, 6, 8, 10, 11]])


@pytest.mark.parametrize("device", ["zzz", "cuda:99", "meta", "cpu:3", "cuda:-1"])
def test_a_missing_device_is_refused(tmp_path, device):
    file = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN).save(tmp_path / "ckpt") / "state.json"
    with pytest.raises(ValueError, match=f"device={device} is not there: this machine has cpu; take one of them"):
        Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN, device=device)
    state = json.loads(file.read_text()) | {"device": device}
    file.write_text(json.dumps(state | {"state_sha256": checkpoint.state_sha256(state)}))
    with pytest.raises(ValueError, match=f"saved on another machine: device={device} is not there.*pass device='cpu'"):
        Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN)
    assert Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN, device="cpu").step == 0


@pytest.mark.parametrize("mean", [1e308, -1e200, float("nan")])
def test_moments_that_no_score_could_have_are_damage(tmp_path, mean):
    file = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN).save(tmp_path / "ckpt") / "state.json"
    state = json.loads(file.read_text())
    state["moments"]["mean"] = mean
    file.write_text(json.dumps(state | {"state_sha256": checkpoint.state_sha256(state)}))
    with pytest.raises(ValueError, match=r"state.json is damaged: moments is"):
        Trainer.resume(tmp_path / "ckpt", PROMPTS, noisy, retain=RETAIN)


def test_after_a_damaged_state_json_the_next_checkpoint_can_be_resumed(tmp_path):
    config = CONFIG.replace(save_every_steps=1, keep_checkpoints=2)
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, config, retain=RETAIN, out=tmp_path)
    trainer.train(1, progress=False)
    file = tmp_path / "checkpoints" / "step-000001" / "state.json"
    for damage in ("{", "[]", "{}"):
        file.write_text(damage)
        trainer.train(1, progress=False)
        assert Trainer.resume(trainer.last_checkpoint, PROMPTS, noisy, retain=RETAIN).step == trainer.step
        file = trainer.last_checkpoint / "state.json"


def test_ctrl_c_saves(tmp_path, capsys):
    calls = []

    def interrupting(samples):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return noisy(samples)

    trainer = Trainer(tiny_gpt2(), PROMPTS, interrupting, CONFIG, retain=RETAIN, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(5, progress=False)
    assert "go on with Trainer.resume" in capsys.readouterr().out
    resumed = Trainer.resume(tmp_path, PROMPTS, noisy, retain=RETAIN)
    assert resumed.step == 3  # the current step is finished
    assert torch.equal(everything(resumed), everything(trainer))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_no_checkpoint_is_not_replaced_by_one(tmp_path):
    """A run's own folder, say, with all its checkpoints and logs."""
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN)
    (tmp_path / "run").mkdir()
    trainer.save(tmp_path / "run")  # an empty one may become a checkpoint
    trainer.save(tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"notes is a folder with a\.txt, and a checkpoint would take its place"):
        trainer.save(tmp_path / "notes")
    with pytest.raises(ValueError, match="file is a file, and a checkpoint would take its place"):
        trainer.save(tmp_path / "file")
    for save in (trainer.save_model, trainer.save_value):
        with pytest.raises(ValueError, match=r"file is no folder, and none can be made there \(.*\): name another"):
            save(tmp_path / "file")
    assert (tmp_path / "notes" / "a.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("steps", [-1, 1.5, "3", None, True])
def test_a_number_of_steps_that_is_none_is_refused(steps):
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, CONFIG, retain=RETAIN)
    with pytest.raises(ValueError, match=f"steps={steps!r} must be a whole number from 0 on"):
        trainer.train(steps, progress=False)


def test_saving_to_an_existing_folder_replaces_it(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("one")
    for _ in range(2):
        checkpoint.link_or_copy(first, second)
    assert second.read_text() == "one"


def test_later_checkpoints_are_deleted_with_the_first_new_one_of_a_resumed_run(tmp_path):
    config = CONFIG.replace(save_every_steps=1, keep_checkpoints=2)
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, config, retain=RETAIN, out=tmp_path)
    trainer.train(4, progress=False)
    folder = tmp_path / "checkpoints"
    resumed = Trainer.resume(folder / "step-000003", PROMPTS, noisy, retain=RETAIN, out=tmp_path)
    resumed.state.counters.step = 1  # as if the run had been resumed from an older checkpoint
    (folder / "step-000009.tmp").mkdir()
    resumed.save_numbered()
    assert [p.name for p in folder.iterdir()] == ["step-000001"]


def test_a_damaged_shared_file_is_written_anew(tmp_path):
    config = CONFIG.replace(save_every_steps=1, keep_checkpoints=2)
    trainer = Trainer(tiny_gpt2(), PROMPTS, noisy, config, retain=RETAIN, out=tmp_path)
    trainer.train(1, progress=False)
    file = tmp_path / "checkpoints" / "step-000001" / "reference.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    trainer.train(1, progress=False)
    assert (tmp_path / "checkpoints" / "step-000002" / "reference.safetensors").read_bytes() == good
    assert Trainer.resume(tmp_path, PROMPTS, noisy, retain=RETAIN).step == 2
