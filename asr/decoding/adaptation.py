"""The encoder adapts to an utterance before that is searched, from the utterance alone and not from what was said.

A speaker whom the model has never heard moves what its layers compute. A scale and a shift for each value of the frames
and of every layer's output (as hidden unit contributions, Swietojanski and Renals 2014) are learned anew for each
utterance, in a few steps, so that the CTC head is surer of its characters and takes fewer of them for each other (Lin,
Li and Lee 2022, "Listen, Adapt, Better WER: Source-free single-utterance test-time adaptation for automatic speech
recognition"). The model itself stays as it is.
"""

import torch
from torch import Tensor, nn

from asr.model.encoder import Adaptation, length_mask
from asr.model.las import ListenAttendSpell
from asr.tokenizer import CharTokenizer

__all__ = ["adapt", "confusion"]

RATE = 1e-3  # of Adam
TEMPERATURE = 2.5  # divides the CTC head's logits, which are too sure of themselves to learn from
ROWS = 4  # utterances that adapt together: going back takes 5 MB for each second of them
ENTROPY = 0.3  # share of the entropy in the loss; the rest is that of confusion


def confusion(ctc_logits: Tensor, lengths: Tensor) -> Tensor:
    """How unsure the CTC head is of each utterance, (B,), from its logits (B, N, V) and the lengths (B,).

    ENTROPY times the mean entropy, in nats, of the states where it does not hear a blank, and the rest times the class
    confusion (Jin et al. 2020, "Minimum class confusion"): the share of the probability of each class that is given to
    other classes, on average.
    """
    states = length_mask(lengths, ctc_logits.shape[1])
    log_p = (ctc_logits.float() / TEMPERATURE).log_softmax(-1)
    p = log_p.exp() * states[..., None]
    entropy = -(p * log_p).sum(-1)  # (B, N), 0 on padding
    speaks = states & (ctc_logits.argmax(-1) != CharTokenizer.blank_id)
    mean = (entropy * speaks).sum(-1) / speaks.sum(-1).clamp_min(1)
    sure = (1 + (-entropy).exp()) * states  # what it is surer of counts more
    sure = sure / sure.sum(-1, keepdim=True)
    together = torch.einsum("bn,bnv,bnw->bvw", sure, p, p)
    together = together / together.sum(-1, keepdim=True).clamp_min(1e-12)
    confused = 1 - together.diagonal(dim1=-2, dim2=-1).mean(-1)
    return ENTROPY * mean + (1 - ENTROPY) * confused


def adapt(model: ListenAttendSpell, frames: Tensor, lengths: Tensor, steps: int) -> Adaptation:
    """Learn, in `steps` steps, what suits each of some utterances; they do not influence each other.

    Args:
        model: in evaluation mode; it is not changed.
        frames: (B, T, n_mels) normalised.
        lengths: (B,)
        steps: each hears all utterances once and goes back through the encoder.
    """
    parts = [_adapt(model, *rows, steps) for rows in zip(frames.split(ROWS), lengths.split(ROWS), strict=True)]
    return [
        (torch.cat([scale for scale, _ in pairs]), torch.cat([shift for _, shift in pairs]))
        for pairs in zip(*parts, strict=True)
    ]


def _adapt(model: ListenAttendSpell, frames: Tensor, lengths: Tensor, steps: int) -> Adaptation:
    sizes = [frames.shape[2], *[model.config.encoder.d] * model.config.encoder.layers]
    lstms = [module for module in model.encoder.modules() if isinstance(module, nn.LSTM)]
    with torch.inference_mode(False), torch.enable_grad():
        # Clones, for what was made in inference mode cannot be learned from.
        frames, lengths = frames[:, : int(lengths.max())].clone(), lengths.clone()
        learned = [frames.new_zeros(len(frames), 1, size, requires_grad=True) for size in sizes for _ in range(2)]
        adaptation = list(zip(learned[::2], learned[1::2], strict=True))
        optimizer = torch.optim.Adam(learned, lr=RATE)
        for lstm in lstms:
            lstm.train()  # cuDNN goes back through no other; there is nothing in them that training changes
        try:
            for _ in range(steps):
                h, states = model.encoder(frames, lengths, adaptation)
                loss = confusion(model.ctc(h), states).sum()
                for values, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                    values.grad = gradient
                optimizer.step()
        finally:
            for lstm in lstms:
                lstm.eval()
    return [(scale.detach(), shift.detach()) for scale, shift in adaptation]
