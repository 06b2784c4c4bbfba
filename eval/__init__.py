"""What a language model remembers, and how well it writes. Use ``from eval.evaluate import evaluate``."""
