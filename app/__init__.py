"""The service: a recording comes in over HTTP, its words go out."""
