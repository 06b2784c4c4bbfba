"""Short programs, one idea each, that run on the built-in lab model: ``python -m examples.own_loop``."""
