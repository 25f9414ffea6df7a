"""The command line: one small file a command, and nothing that is not needed is imported."""
