"""The encoder gets used to a voice, from what a first search wrote of it, before that speech is searched for good.

A speaker whom the model has never heard moves what its layers compute. A scale and a shift for each value of the frames
and of every layer's output are learned from all that is there of one voice (learning hidden unit contributions,
Swietojanski and Renals 2014), as if what was written were what was said: most of it is, and the language model knew
more than the encoder. Parts of the frames are hidden meanwhile, so that the voice is learned rather than the mistakes.
The model itself stays as it is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from asr.frontend import SpecAugment, SpecAugmentConfig
from asr.model.encoder import Adaptation
from asr.model.las import ListenAttendSpell
from asr.model.loss import ctc_loss, spelling_loss
from asr.tokenizer import CharTokenizer

__all__ = ["adapt"]

PASSES = 3  # over the speech
ROWS = 4  # segments a step
RATE = 3e-3  # of Adam at first; it falls to 0
CTC_SHARE = 0.5  # of the loss; the rest is the speller's
MASKS = SpecAugmentConfig(frequency_width=10, max_time_width=15)


def adapt(
    model: ListenAttendSpell,
    frames: Sequence[Tensor],
    written: Sequence[Sequence[int]],
    ctc_weight: float = CTC_SHARE,
    on_step: Callable[[float], None] | None = None,
) -> Adaptation:
    """Learn what suits the voice that all these segments are of.

    Args:
        model: in evaluation mode; it is not changed.
        frames: of each segment (T, n_mels), normalised.
        written: the characters of each, without BOS and EOS; segments without any teach nothing.
        ctc_weight: of the search. At 0 CTC, and at 1 the speller, has no part in it and may never have been trained:
            nothing is learned from it.
        on_step: called now and then with the share of the work that was done since the last call.

    Returns:
        (1, 1, size) each, for `ListenAttendSpell.listen`.
    """
    ctc_share = CTC_SHARE if 0 < ctc_weight < 1 else ctc_weight
    encoder = model.config.encoder
    sizes = [encoder.n_mels, *[encoder.d] * encoder.layers]
    device = next(model.parameters()).device
    lstms = [module for module in model.modules() if isinstance(module, nn.LSTM)]
    useful = [i for i, tokens in enumerate(written) if len(tokens) and len(frames[i]) >= 2 * encoder.reduction]
    useful.sort(key=lambda i: len(frames[i]))
    batches = [useful[i : i + ROWS] for i in range(0, len(useful), ROWS)]
    random, masks = torch.Generator().manual_seed(1), SpecAugment(MASKS)
    with torch.inference_mode(False), torch.enable_grad():
        learned = [torch.zeros(1, 1, size, device=device, requires_grad=True) for size in sizes for _ in range(2)]
        adaptation = list(zip(learned[::2], learned[1::2], strict=True))
        optimizer = torch.optim.Adam(learned, lr=RATE)
        for lstm in lstms:
            lstm.train()  # cuDNN goes back through no other; there is nothing in them that training changes
        try:
            order = [i for _ in range(PASSES) for i in torch.randperm(len(batches), generator=random).tolist()]
            for step, batch in enumerate(batches[i] for i in order):
                optimizer.param_groups[0]["lr"] = RATE * (1 - step / len(order))
                later = int(torch.randint(encoder.reduction, (), generator=random))  # another phase of the pyramid
                # Copies, for what was made in inference mode cannot be learned from.
                heard = pad_sequence([frames[i][later:].clone() for i in batch], batch_first=True)
                lengths = torch.tensor([len(frames[i]) - later for i in batch])
                heard = masks(heard.cpu(), lengths, random).to(device)
                tokens = [written[i] for i in batch]
                loss = _loss(model, heard, lengths.to(device), tokens, adaptation, ctc_share)
                for values, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                    values.grad = gradient
                optimizer.step()
                if on_step:
                    on_step(len(batch) / (PASSES * len(useful)))
        finally:
            for lstm in lstms:
                lstm.eval()
    return [(scale.detach(), shift.detach()) for scale, shift in adaptation]


def _loss(
    model: ListenAttendSpell,
    frames: Tensor,
    lengths: Tensor,
    written: Sequence[Sequence[int]],
    adaptation: Adaptation,
    ctc_share: float,
) -> Tensor:
    """That of a batch (B, T, n_mels), lengths (B,), as if what was written were what was said."""
    t = CharTokenizer
    characters = pad_sequence(
        [torch.tensor([t.bos_id, *tokens, t.eos_id]) for tokens in written], batch_first=True, padding_value=t.pad_id
    ).to(frames.device)
    counts = torch.tensor([len(tokens) for tokens in written], device=frames.device)
    h, lengths = model.encoder(frames, lengths, adaptation)
    loss = h.new_zeros(())
    if ctc_share > 0:
        loss = loss + ctc_share * ctc_loss(model.ctc(h), lengths, characters, counts, zero_infinity=True)
    if ctc_share < 1:
        logits, _ = model.speller(characters[:, :-1], model.speller.memory(h, lengths))
        loss = loss + (1 - ctc_share) * spelling_loss(logits, characters)
    return loss
