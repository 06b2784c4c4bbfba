"""What each detail of PPO does: one task, one detail switched at a time."""
