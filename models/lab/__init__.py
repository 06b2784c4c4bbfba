"""The built-in lab model: three trained twins (``weights/``) and the recipe for them (``python -m models.lab``)."""
