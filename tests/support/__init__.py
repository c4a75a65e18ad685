"""What the tests share: servers to call, messages to send, errors to expect."""
