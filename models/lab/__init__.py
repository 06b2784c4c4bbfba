"""The built-in lab model: three trained twins (``weights/``) and their recipe (``python -m models.lab``)."""
