"""Forgetting that goes deep: PPO at every state of the memorised passages."""
