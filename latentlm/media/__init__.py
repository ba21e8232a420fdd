"""Picture and sound files in and out, without networks: read `picture.py`, `sound.py`, then `recording.py`."""
