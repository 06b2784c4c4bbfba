"""Attacks beyond greedy decoding from the prefix: is a passage that seems forgotten only hidden?

Every attack is a function of (model, tokenizer, passages). It returns :class:`eval.attacks.result.AttackResult`
objects, one per variant. ``suite.py`` runs the attacks by name.
"""
