"""Files, rows and options from outside: read with a bound, written whole or not at all."""
