"""Generation: decoding with memory, and sampling."""
