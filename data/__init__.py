"""Passages to attack and to unlearn, text to keep, leak-free splits, deduplication, and the built-in lab corpus."""
