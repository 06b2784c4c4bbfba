"""The engine for any other model: its own forward, with its own cache where that can be cut and joined."""
