import torch
from toy_speech import speak

from asr.decoding.greedy import ctc_greedy, speller_greedy
from asr.frontend import FrontendConfig, LogMel, Normalizer
from asr.model import EncoderConfig, ListenAttendSpell, ModelConfig, SpellerConfig
from asr.model.loss import joint_loss
from asr.tokenizer import CharTokenizer
from asr.training.module import word_errors

TEXTS = ["BAD CAB", "A FACADE", "DEAD BEE FED", "CAGE"]


def test_one_batch_is_overfitted_to_wer_0():
    tokenizer, log_mel = CharTokenizer(), LogMel(FrontendConfig(n_mels=40))
    rows = [log_mel(torch.from_numpy(speak(text, i))) for i, text in enumerate(TEXTS)]
    lengths = torch.tensor([len(row) for row in rows])
    frames = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    normalizer = Normalizer(40)
    everything = torch.cat(rows).double()
    normalizer.set_statistics(len(everything), everything.sum(0), (everything**2).sum(0))
    frames = normalizer(frames)
    ids = [torch.tensor([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]) for text in TEXTS]
    characters = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    character_lengths = torch.tensor([len(text) for text in TEXTS])

    model = ListenAttendSpell(
        ModelConfig(EncoderConfig(n_mels=40, d=64, layers=2, dropout=0), SpellerConfig(d=64, embedding=32, dropout=0))
    )
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(150):
        out = model(frames, lengths, characters[:, :-1])
        attention, ctc = joint_loss(out.logits, out.ctc_logits, out.lengths, characters, character_lengths)
        optimizer.zero_grad()
        (attention + ctc).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    model.eval()
    h, out_lengths = model.encoder(frames, lengths)
    for hypotheses in (speller_greedy(model.speller, h, out_lengths)[0], ctc_greedy(model.ctc(h), out_lengths)):
        texts = [tokenizer.decode(row) for row in hypotheses]
        assert texts == TEXTS
        assert sum(map(word_errors, TEXTS, texts)) == 0
