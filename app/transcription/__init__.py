"""Transcription: what may be asked, how it is done, how it is answered."""
