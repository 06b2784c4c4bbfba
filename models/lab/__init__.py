"""The built-in lab model: three trained twins (``weights/``) and the recipe that makes them (``python -m models.lab``)."""
