"""Where utterances come from: corpora on disk -> lhotse manifests -> batches.

Import the module you need (`asr.corpus.librispeech`, `asr.corpus.an4`, ...); this package itself stays empty,
so that looking at one corpus does not load the training code.
"""
