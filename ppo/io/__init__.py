"""Files, rows and options from outside. They are read with a bound on their size, and written whole or not at all."""
