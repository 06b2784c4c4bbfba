"""Front doors to the trainer, for responses of another engine and scripts of another library."""
