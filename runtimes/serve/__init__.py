"""An HTTP server in front of models, as OpenAI's clients speak to one; docs/serve.md."""
