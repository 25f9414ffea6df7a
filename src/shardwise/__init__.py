"""Large language models cut over any number of devices: tensor parallelism, end to end.

Importing this loads nothing else; the pieces are imported where they are used.
"""
