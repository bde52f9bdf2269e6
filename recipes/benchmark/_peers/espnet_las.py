"""ESPnet: `RNNEncoder` with projections and subsampling, `RNNDecoder` with dot-product attention, and its `CTC`.

Two variants: `4` keeps a fourth of the frames as this project does, `8` keeps an eighth: subsample=(2, 2, 2). At an
eighth the cases' transcripts have more characters than CTC has frames; its CTC then counts 0 for them.
"""

from __future__ import annotations

import torch
from _decode import Decode, Search
from _step import CTC_WEIGHT, DROPOUT, LABEL_SMOOTHING, N_MELS, VOCABULARY, Batch
from espnet.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos
from espnet.nets.pytorch_backend.transformer.label_smoothing_loss import LabelSmoothingLoss
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.rnn_decoder import RNNDecoder
from espnet2.asr.encoder.rnn_encoder import RNNEncoder
from torch import Tensor, nn

D = 512
IGNORE = -1
SOS = VOCABULARY - 1  # fixed by RNNDecoder
VARIANTS = {  # subsampling after each layer, units of a direction
    "4": ((2, 2, 1, 1), 288),
    "8": ((2, 2, 2), 352),
}


def installed_version() -> str:
    from importlib.metadata import version

    return version("espnet")


class EspnetSystem:
    def __init__(self, variant: str = "4") -> None:
        subsample, units = VARIANTS[variant]
        self.version = installed_version()
        self.description = f"RNNEncoder(subsample={subsample}), RNNDecoder(atype='dot')"
        self.encoder = RNNEncoder(
            N_MELS,
            num_layers=len(subsample),
            hidden_size=units,
            output_size=D,
            dropout=DROPOUT,
            subsample=subsample,
        )
        self.speller = RNNDecoder(VOCABULARY, D, hidden_size=D, dropout=DROPOUT, att_conf={"atype": "dot", "adim": D})
        self.ctc = CTC(VOCABULARY, D, dropout_rate=DROPOUT)
        self.criterion = LabelSmoothingLoss(VOCABULARY, IGNORE, LABEL_SMOOTHING)
        self.model = nn.ModuleList([self.encoder, self.speller, self.ctc])

    def loss(self, batch: Batch) -> Tensor:
        counts = batch.character_lengths
        ys = batch.characters[:, 1:-1]
        ys = ys.masked_fill(torch.arange(ys.shape[1], device=ys.device) >= counts[:, None], IGNORE)
        h, lengths, _ = self.encoder(batch.frames, batch.lengths)
        ctc = self.ctc(h, lengths, ys, counts)
        ys_in, ys_out = add_sos_eos(ys, SOS, SOS, IGNORE)
        logits, _ = self.speller(h, lengths, ys_in, counts + 1)
        return (1 - CTC_WEIGHT) * self.criterion(logits, ys_out) + CTC_WEIGHT * ctc

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), 1e-3, fused=True)

    def searcher(self, search: Search) -> str:
        return "BeamSearch" + (", CTCPrefixScorer" if search.ctc else "")

    def decoder(self, search: Search) -> Decode:
        """As its `asr_inference` puts it together: `RNNDecoder` cannot score batches, so `BeamSearch` searches."""
        from espnet.nets.beam_search import BeamSearch
        from espnet.nets.scorers.ctc import CTCPrefixScorer

        beam_search = BeamSearch(
            scorers={"decoder": self.speller, "ctc": CTCPrefixScorer(self.ctc, SOS)},
            weights={"decoder": 1 - search.ctc_weight, "ctc": search.ctc_weight},
            beam_size=search.beam,
            vocab_size=VOCABULARY,
            sos=SOS,
            eos=SOS,
            pre_beam_score_key="full",
        )
        with torch.no_grad():
            self.speller.output.bias[SOS] = -1e4  # no EOS but the one that is put after the last character

        def decode(h: Tensor) -> list[list[int]]:
            found = [beam_search(states, maxlenratio=-search.tokens) for states in h]
            return [hypotheses[0].yseq[1:-1].tolist() for hypotheses in found]

        return decode


build = EspnetSystem
