"""Passages to attack and to unlearn, text to keep, splits without leaks, deduplication, and the built-in lab corpus."""
