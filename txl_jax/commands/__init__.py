"""The commands of `txl`: what each takes, runs and prints."""
