"""What a model says becomes content, reasoning and tool calls: pure text in, pieces out. Knows no HTTP and no tokens."""
