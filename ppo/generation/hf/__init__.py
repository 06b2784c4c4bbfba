"""The engine for any other model: its own forward, and its own cache as far as that works."""
