"""Attacks beyond greedy decoding from the prefix: is what seems forgotten only hidden?

Every attack is a function of (model, tokenizer, passages) that gives :class:`eval.attacks.result.AttackResult` objects,
one a variant. ``suite.py`` runs them by name.
"""
