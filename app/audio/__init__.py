"""Recordings: from the bytes of a file to the features of a waveform, in worker processes."""
