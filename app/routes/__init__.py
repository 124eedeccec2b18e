"""HTTP, thin: parse, call the transcriber, render."""
