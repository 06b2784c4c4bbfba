"""``demem.py compare``: other methods beside DeMem, on the same passages, by the same evaluation."""
