"""Picture and sound files in and out, without networks: `picture.py`, `sound.py`, `recording.py`."""
