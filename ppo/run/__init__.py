"""What a run on a real machine meets: little memory, Ctrl-C, other people's reward functions, rounding."""
