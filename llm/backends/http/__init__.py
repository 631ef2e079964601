"""The HTTP client for services with the OpenAI chat-completions protocol: see `client`."""
