"""The HTTP server: OpenAI's, Anthropic's and TGI's APIs over one engine. It loads no torch."""
