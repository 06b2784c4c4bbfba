"""Other prompts, sampled and scored while a run trains."""
