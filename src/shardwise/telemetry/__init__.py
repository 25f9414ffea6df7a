"""What shardwise tells about itself while it runs."""
