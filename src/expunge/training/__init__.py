"""One Trainer and its callbacks."""
