"""AdamW, with its schedule and its two epsilons."""
