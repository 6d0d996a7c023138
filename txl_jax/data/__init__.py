"""From text to token segments: vocabularies, corpora, streams."""
