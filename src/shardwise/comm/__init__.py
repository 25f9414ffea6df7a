"""How the ranks of one group talk. Importing this package does not import torch: pick a backend by its module."""
