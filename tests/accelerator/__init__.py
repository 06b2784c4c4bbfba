"""The library on a device that is not the CPU, on machines that have no other: a pretend one (``device.py``)."""
