"""The built-in lab model: four trained twins (``weights/``) and the recipe for them (``python -m models.lab``)."""
