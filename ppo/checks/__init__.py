"""What must hold in every step, and what a violation leaves behind."""

from .checks import CheckError, rollout_problems

__all__ = ["CheckError", "rollout_problems"]
