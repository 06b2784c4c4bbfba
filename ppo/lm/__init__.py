"""Where a causal LM is taken apart: its hidden states, its output layer, the distribution of its next token."""
