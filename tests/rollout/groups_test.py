import numpy as np
import pytest
import tokenizers
import transformers

from gft_jax.batch import EXPERT, SELF, TEACHER, Prompts, Responses
from gft_jax.config import RewardConfig
from gft_jax.data import arithmetic
from gft_jax.rewards.grader import Grader, score_groups
from gft_jax.rollout import groups
from gft_jax.rollout.texts import (
  cut_at_stop_strings,
  decode_responses,
  token_pieces,
)

PROMPTS = Prompts(
  tokens=np.array([[5, 6], [7, 0]], np.int32),
  length=np.array([2, 1], np.int32),
  index=np.array([40, 41], np.int32),
)


def responses_of(lengths, first=0):
  length = np.array(lengths, np.int32)
  shape = (*length.shape, 3)
  tokens = np.arange(first, first + np.prod(shape)).reshape(shape)
  return Responses(
    tokens=tokens.astype(np.int32),
    length=length,
    behavior_logp=-tokens.astype(np.float32),
  )


def test_join_keeps_the_order_experts_teachers_self():
  given, own = responses_of([[3, 0], [1, 2]]), responses_of([[2], [3]], 50)
  origin = np.array([[EXPERT, TEACHER]] * 2)
  joined, origins = groups.join(given, origin, own)
  assert origins.tolist() == [[EXPERT, TEACHER, SELF]] * 2
  assert joined.length.tolist() == [[3, 0, 2], [1, 2, 3]]
  np.testing.assert_array_equal(joined.tokens[:, :2], given.tokens)
  np.testing.assert_array_equal(joined.behavior_logp[:, 2:], own.behavior_logp)


def test_join_without_samples_is_what_was_given():
  given = responses_of([[3], [1]])
  joined, origins = groups.join(given, np.full((2, 1), EXPERT), None)
  np.testing.assert_array_equal(joined.tokens, given.tokens)
  assert origins.tolist() == [[EXPERT], [EXPERT]]


def test_sampled_answers_train_whole_beside_given_ones_that_do_not():
  given, own = responses_of([[3], [2]]), responses_of([[2], [3]], 50)
  trained = np.array([[[1, 0, 1]], [[0, 1, 0]]], bool)
  joined, _ = groups.join(
    given.replace(trained=trained), np.full((2, 1), EXPERT), own
  )
  assert joined.trained.astype(int).tolist() == [
    [[1, 0, 1], [1, 1, 1]],
    [[0, 1, 0], [1, 1, 1]],
  ]
  alone, _ = groups.join(
    given.replace(trained=trained), np.full((2, 1), EXPERT), None
  )
  np.testing.assert_array_equal(alone.trained, trained)
  # Where everything trains, there is no mask to carry.
  assert groups.join(given, np.full((2, 1), EXPERT), own)[0].trained is None


def test_build_masks_empty_slots_and_ignores_their_reward():
  rewards_ = np.array([[1.0, np.nan], [0.0, 0.5]])
  batch = groups.build(
    PROMPTS, responses_of([[3, 0], [1, 2]]), np.zeros((2, 2), int), rewards_
  )
  assert batch.member_mask.tolist() == [[True, False], [True, True]]
  assert batch.rewards.tolist() == [[1.0, 0.0], [0.0, 0.5]]
  expected = [[[1, 1, 1], [0, 0, 0]], [[1, 0, 0], [1, 1, 0]]]
  assert np.asarray(batch.token_mask).astype(int).tolist() == expected


def batch_of(rewards, first):
  """Groups whose tokens tell which batch and row they come from."""
  return groups.build(
    PROMPTS,
    responses_of([[3, 3], [3, 3]], first),
    np.full((2, 2), SELF),
    np.array(rewards),
  )


def test_flat_groups_are_replaced_by_the_first_that_are_not():
  batch = batch_of([[1.0, 1.0], [0.0, 1.0]], first=0)
  further = batch_of([[0.0, 0.0], [1.0, 0.0]], first=100)
  assert groups.flat(batch).tolist() == [True, False]
  filled = groups.refill(batch, further)
  assert filled.rewards.tolist() == [[1, 0], [0, 1]]
  np.testing.assert_array_equal(
    filled.responses.tokens,
    np.stack([further.responses.tokens[1], batch.responses.tokens[1]]),
  )
  assert filled.prompts.index.tolist() == [41, 41]
  assert batch.rewards.tolist() == [[1, 1], [0, 1]]  # It is not written to.


def test_flat_groups_stay_where_nothing_can_replace_them():
  batch = batch_of([[1.0, 1.0], [1.0, 1.0]], first=0)
  further = batch_of([[0.0, 0.0], [1.0, 0.0]], first=100)
  filled = groups.refill(batch, further)
  assert groups.flat(filled).tolist() == [False, True]


def test_a_group_that_replaces_another_brings_its_mask():
  def masked(rewards, first, trained):
    batch = batch_of(rewards, first)
    mask = np.full(batch.responses.tokens.shape, trained)
    return batch.replace(responses=batch.responses.replace(trained=mask))

  filled = groups.refill(
    masked([[1.0, 1.0], [0.0, 1.0]], 0, True),
    masked([[0.0, 0.0], [1.0, 0.0]], 100, False),
  )
  assert filled.responses.trained.all(axis=(1, 2)).tolist() == [False, True]


def test_build_names_both_shapes():
  with pytest.raises(ValueError, match=r'\(2, 1\).*\(2, 2\)'):
    groups.build(
      PROMPTS,
      responses_of([[1, 1], [1, 1]]),
      np.zeros((2, 1), int),
      np.zeros((2, 1)),
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
      ['4+5:', '1+2:'],
      ['9', '3'],
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


def test_replayed_time_outs_keep_their_position_beside_empty_slots():
  with Grader(RewardConfig(function='arithmetic')) as grader:
    scored = score_groups(
      grader,
      ['', ''],
      ['1', '2'],
      [['', '#1'], ['#2', '#2']],
      np.array([[False, True], [True, True]]),
      np.ones((2, 2), bool),
      timed_out=(2,),
    )
  assert scored.values.tolist() == [[0, 1], [0, 1]]
  assert scored.timed_out == (2,)
  assert scored.failures == {'timeout': 1}


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
