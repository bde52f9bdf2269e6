"""SpeechBrain: the same pyramid out of `nnet.RNN.LSTM`, `AttentionalRNNDecoder` and a linear CTC head.

Losses, lengths and heads are put together as in its LibriSpeech seq2seq recipe; the layer sizes are this project's.
"""

from __future__ import annotations

import torch
from _decode import Decode, Search
from _step import BOS, CTC_WEIGHT, DROPOUT, EOS, LABEL_SMOOTHING, N_MELS, VOCABULARY, Batch
from speechbrain import __version__
from speechbrain.nnet.embedding import Embedding
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import ctc_loss, nll_loss
from speechbrain.nnet.RNN import LSTM, AttentionalRNNDecoder
from torch import Tensor, nn

D = 512
EMBEDDING = 128
PRE_BEAM = 1.5  # characters that CTC scores, in beams: ESPnet's default
JOIN_BEFORE = (0, 1)  # as this project's preset: reduction 4
LAYERS = 4


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = [N_MELS] + [D] * (LAYERS - 1)
        self.encoder = nn.ModuleList(
            LSTM(D // 2, input_size=size * (2 if i in JOIN_BEFORE else 1), bidirectional=True)
            for i, size in enumerate(sizes)
        )
        self.dropout = nn.Dropout(DROPOUT)
        self.embedding = Embedding(VOCABULARY, embedding_dim=EMBEDDING)
        self.decoder = AttentionalRNNDecoder(
            "lstm", "keyvalue", D, D, num_layers=1, enc_dim=D, input_size=EMBEDDING, dropout=DROPOUT
        )
        self.seq_lin = Linear(VOCABULARY, input_size=D)
        self.ctc_lin = Linear(VOCABULARY, input_size=D)

    def forward(self, frames: Tensor, relative: Tensor, characters: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, T, n_mels), lengths as shares of T (B,), characters (B, U + 1) -> log-probabilities."""
        x = frames
        # Lengths make it pack the rows, which costs it several times the step: only where rows differ, then.
        lengths = None if bool((relative == 1).all()) else relative
        for i, layer in enumerate(self.encoder):
            if i in JOIN_BEFORE:
                batch, time, d = x.shape
                x = x[:, : time // 2 * 2].reshape(batch, time // 2, 2 * d)
            x = self.dropout(layer(x, lengths=lengths)[0])
        h, _ = self.decoder(self.embedding(characters), x, relative)
        return self.seq_lin(h).log_softmax(-1), self.ctc_lin(x).log_softmax(-1)


class SpeechBrainSystem:
    version = __version__
    description = "nnet.RNN.LSTM pyramid (reduction 4), AttentionalRNNDecoder('lstm', 'keyvalue')"

    def __init__(self) -> None:
        self.model = Model()
        self.encoder = self.model.encoder

    def loss(self, batch: Batch) -> Tensor:
        relative = batch.lengths / batch.lengths.max()
        counts, most = batch.character_lengths, batch.character_lengths.max()
        p_seq, p_ctc = self.model(batch.frames, relative, batch.characters[:, :-1])
        seq = nll_loss(p_seq, batch.characters[:, 1:], (counts + 1) / (most + 1), label_smoothing=LABEL_SMOOTHING)
        ctc = ctc_loss(p_ctc, batch.characters[:, 1:-1], relative, counts / most, blank_index=0)
        return (1 - CTC_WEIGHT) * seq + CTC_WEIGHT * ctc

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), 1e-3, fused=True)

    def searcher(self, search: Search) -> str:
        return "S2SRNNBeamSearcher" + (", CTCScorer (partial)" if search.ctc else "")

    def decoder(self, search: Search) -> Decode:
        """CTC scores the most promising characters alone, as in ESPnet: quicker than the whole vocabulary."""
        from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
        from speechbrain.decoders.seq2seq import S2SRNNBeamSearcher

        scorer = None
        if search.ctc:
            ctc = CTCScorer(self.model.ctc_lin, blank_index=0, eos_index=EOS)
            scorer = ScorerBuilder({"ctc": search.ctc_weight}, partial_scorers=[ctc], scorer_beam_scale=PRE_BEAM)
        steps = (search.tokens + 1.5) / search.frames  # the last character counts as EOS and is cut off
        searcher = S2SRNNBeamSearcher(
            self.model.embedding,
            self.model.decoder,
            self.model.seq_lin,
            bos_index=BOS,
            eos_index=EOS,
            min_decode_ratio=steps,
            max_decode_ratio=steps,
            beam_size=search.beam,
            scorer=scorer,
            using_eos_threshold=False,
        )

        def decode(h: Tensor) -> list[list[int]]:
            hypotheses, *_ = searcher(h, torch.ones(h.shape[0], device=h.device))
            return hypotheses

        return decode


build = SpeechBrainSystem
