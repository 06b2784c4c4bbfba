"""What a run needs on a real machine: for too little memory, Ctrl-C, other people's reward functions, and rounding."""
