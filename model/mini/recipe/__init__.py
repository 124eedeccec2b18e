"""The recipe that trains the embedded checkpoint: texts -> speech -> features -> decoder -> exported folder.

Nothing outside this package imports it. `python -m model.mini.recipe --help` lists the stages.
"""
