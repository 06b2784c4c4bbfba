"""Pages about the library, and the two small programs that keep them true; nothing here is installed."""
