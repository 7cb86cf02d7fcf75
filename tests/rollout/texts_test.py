"""Answers as texts: where they stop, whether they ended, piece by piece."""

import numpy as np
import tokenizers
import transformers

from gft_jax.batch import Responses
from gft_jax.config import RewardConfig
from gft_jax.data import arithmetic
from gft_jax.rewards.grader import Grader, Problems, score_groups
from gft_jax.rollout.texts import (
  cut_at_stop_strings,
  decode_responses,
  token_pieces,
)


def tokens_of(tokenizer, *texts):
  ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
  width = max(map(len, ids))
  tokens = np.array([i + [0] * (width - len(i)) for i in ids], np.int32)
  length = np.array([len(i) for i in ids], np.int32)
  return tokens, length


def test_decode_and_score_texts_of_groups():
  tokenizer = arithmetic.tokenizer()
  eos = tokenizer.eos_token
  # Right, unfinished, wrong; an empty slot, right, no number.
  texts = [f'7#9{eos}', '7#9', f'#8{eos}', '', f'#3{eos}', f'12{eos}']
  tokens, length = tokens_of(tokenizer, *texts)
  responses = Responses(
    tokens=tokens.reshape(2, 3, -1),
    length=length.reshape(2, 3),
    behavior_logp=np.zeros((2, 3, tokens.shape[-1]), np.float32),
  )
  stop_ids = (tokenizer.eos_token_id,)
  decoded, finished = decode_responses(tokenizer, responses, stop_ids)
  assert decoded == [['7#9', '7#9', '#8'], ['', '#3', '12']]
  assert finished.tolist() == [[True, False, True], [False, True, True]]

  with Grader(RewardConfig(function='arithmetic')) as grader:
    scored = score_groups(
      grader,
      Problems(['4+5:', '1+2:'], ['9', '3']),
      decoded,
      responses.length > 0,
      finished,
    )
  assert scored.values.tolist() == [[1, 0, 0], [0, 1, 0]]
  assert scored.failures == {'parse': 1}


def test_a_stop_string_cuts_tokens_and_log_probabilities_alike():
  tokenizer = arithmetic.tokenizer()
  tokens, length = tokens_of(tokenizer, '12#34', '7#9', '4#34')
  responses = Responses(
    tokens=tokens[None],
    length=length[None],
    behavior_logp=-1.0 * (tokens[None] > 0),
  )
  trained = np.ones(tokens[None].shape, bool)
  responses = responses.replace(trained=trained)
  cut = cut_at_stop_strings(tokenizer, responses, ('#3', '34'))
  np.testing.assert_array_equal(cut.trained, trained)
  assert cut.length.tolist() == [[4, 3, 3]]
  for ours, whole in (
    (cut.tokens, responses.tokens),
    (cut.behavior_logp, responses.behavior_logp),
  ):
    kept = np.arange(tokens.shape[-1]) < cut.length[..., None]
    np.testing.assert_array_equal(ours, np.where(kept, whole, 0))
  texts, finished = decode_responses(tokenizer, cut, (), ('#3', '34'))
  assert texts == [['12#3', '7#9', '4#3']]
  assert finished.tolist() == [[True, False, True]]


def test_a_stop_string_may_be_a_special_token():
  tokenizer = arithmetic.tokenizer()
  eos = tokenizer.eos_token
  tokens, length = tokens_of(tokenizer, f'12{eos}3', '123')
  responses = Responses(tokens[None], length[None], -1.0 * (tokens[None] > 0))
  cut = cut_at_stop_strings(tokenizer, responses, (eos,))
  assert cut.length.tolist() == [[3, 3]]
  texts, finished = decode_responses(tokenizer, cut, (), (eos,))
  assert texts == [['12', '123']]
  assert finished.tolist() == [[True, False]]


def test_pieces_of_a_byte_level_vocabulary_are_the_decoded_answer():
  """A token is a byte, as where a byte-level BPE has no merge for it."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  bytes_alone = tokenizers.Tokenizer(
    tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, [])
  )
  bytes_alone.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  bytes_alone.decoder = tokenizers.decoders.ByteLevel()
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_alone)
  ids = tokenizer('a é數🙂!')['input_ids']
  found = token_pieces(tokenizer, ids)
  assert len(ids) == 2 + 1 + 1 + 3 + 4 + len('!') + 0
  assert found == ['a', ' ', '', 'é', '', '', '數', *['', '', '', '🙂'], '!']
  # What a policy writes need not be text: here a smile without its last byte.
  for broken in (ids[:-2], [*ids[:-2], *ids[:2]], ids[-3:], ids[3:4] * 3):
    found = token_pieces(tokenizer, broken)
    assert len(found) == len(broken)
    assert ''.join(found) == tokenizer.decode(broken)
    assert '\ufffd' in ''.join(found)


def test_pieces_keep_the_special_tokens():
  tokenizer = arithmetic.tokenizer()
  ids = [*tokenizer('7+8', add_special_tokens=False)['input_ids']]
  ids.append(tokenizer.eos_token_id)
  assert token_pieces(tokenizer, ids) == ['7', '+', '8', arithmetic.EOS]
  assert token_pieces(tokenizer, []) == []
