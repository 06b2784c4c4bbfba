"""Moving from TRL's classic PPOTrainer (0.4 to 0.11): the old script, with another import.

The loop of the DeMem notebook: prefixes in, sampled suffixes out, minus a similarity to the true suffix as the score.
Of the loop, only the import is not TRL's: it was ``from trl import …``. Run: python -m examples.from_trl
"""

import torch

from data.lab import lab_passages
from models.load import load
from ppo.compat.trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model, set_seed
from rewards import Bleu


def main(epochs: int = 2, batch_size: int = 32) -> list[dict]:
    """The statistics of every step."""
    config = PPOConfig(
        model_name="lab", learning_rate=1.41e-5, batch_size=batch_size, forward_batch_size=8, ppo_epochs=4
    )
    set_seed(config.seed)
    lab = load(config.model_name)
    tokenizer, bleu = lab.tokenizer, Bleu()
    model = AutoModelForCausalLMWithValueHead.from_pretrained(lab.model)  # or a hub id, or a folder
    model_ref = create_reference_model(model)
    passages = [p for p in lab_passages(tokenizer) if p.group == "forget"]
    dataset = [{"tokens": list(p.prefix), "suffix": lab.decode(p.suffix)} for p in passages]
    ppo_trainer = PPOTrainer(config, model, model_ref, tokenizer, dataset=dataset)
    generation_kwargs = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "max_new_tokens": 50}
    history = []
    for _epoch, batch in zip(range(epochs), ppo_trainer.dataloader, strict=False):
        query_tensors = [torch.tensor(ids) for ids in batch["tokens"]]
        response_tensors = ppo_trainer.generate(query_tensors, return_prompt=False, **generation_kwargs)
        batch["query"] = [tokenizer.decode(query) for query in query_tensors]
        batch["response"] = [tokenizer.decode(response) for response in response_tensors]
        scores = [
            torch.tensor(-bleu.sentence(text, truth) / 100)
            for text, truth in zip(batch["response"], batch["suffix"], strict=True)
        ]
        stats = ppo_trainer.step(query_tensors, response_tensors, scores)
        ppo_trainer.log_stats(stats, batch, scores)
        print(f"score {stats['ppo/mean_scores']:.3f}, KL {stats['objective/kl']:.3f}")
        history.append(stats)
    return history


if __name__ == "__main__":
    main()
