"""A TinyLLaVA of real parts, trained by the commands that a user has. See README.md."""
