"""What only an accelerator can show."""
