"""What a language model has memorised, and how well it writes. Use ``from eval.evaluate import evaluate``."""
