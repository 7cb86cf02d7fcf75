"""A split: what its batches hold, and what is dropped."""

import time

import numpy as np
import pytest
import tokenizers
import transformers
from data_rows import GROUP, rows, same

from gft_jax import data
from gft_jax.batch import EXPERT, TEACHER
from gft_jax.config import ConfigError, DataConfig, GroupConfig
from gft_jax.data import arithmetic, pipeline

OWN = GroupConfig(experts=0, teachers=0, samples=1)


def word_tokenizer(bos=False, **special):
  """One token per word; with `bos`, BOS in front, as Llama's does."""
  words = (
    '[UNK] <s> </s> [PAD] user assistant how many two 2 ? system ####'.split()
  )
  model = tokenizers.models.WordLevel(
    {word: i for i, word in enumerate(words)}, unk_token='[UNK]'
  )
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  if bos:
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 1)]
    )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    unk_token='[UNK]',
    bos_token='<s>',
    eos_token='</s>',
    **special,
  )


def test_a_batch_by_hand(load):
  found = load(
    [
      {'prompt': '7+8:', 'answer': '15', 'expert': '#15', 'teacher': ['#1']},
      {'prompt': '2:', 'answer': '2', 'expert': '#2', 'teacher': []},
    ],
    max_prompt=5,
    max_response=4,
  ).first(9)
  seven, eight, two, one, five, plus, colon, mark = (
    arithmetic.ALPHABET.index(c) for c in '7821' + '5+:#'
  )
  eos = arithmetic.ALPHABET.index('$')
  expected = data.Examples(
    tokens=np.array([[seven, plus, eight, colon, 0], [two, colon, 0, 0, 0]]),
    length=np.array([4, 2]),
    index=np.array([1, 2]),
    given_tokens=np.array(
      [
        [[mark, one, five, eos], [mark, one, eos, 0], [0, 0, 0, 0]],
        [[mark, two, eos, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
      ]
    ),
    given_length=np.array([[4, 3, 0], [3, 0, 0]]),
    given_origin=np.array([EXPERT, TEACHER, TEACHER]),
    prompts=['7+8:', '2:'],
    answers=['15', '2'],
    given_texts=[['#15', '#1', ''], ['#2', '', '']],
  )
  assert same(found, expected)
  for array in (found.tokens, found.given_tokens, found.length, found.index):
    assert array.dtype == np.int32


def test_what_is_too_long_is_dropped_and_counted(load):
  long = rows(20)
  long[3]['prompt'] = '1+1+1:'
  long[4]['expert'] = 'p1n1#12345'
  long[5]['expert'] = '7+8=15#15'  # Nine characters and EOS: ten, fits.
  long[6]['teacher'] = ['#12345678', '#123456789', '#7']
  long[7]['prompt'] = '1+a:'
  dataset = load(long, max_prompt=5, max_response=10)
  assert dataset.statistics.dropped == {
    'prompts longer than data.max_prompt=5': [4],
    'experts longer than data.max_response=10': [5],
    'with text that the tokenizer does not know': [8],
  }
  assert dataset.statistics.rows == len(dataset) == 17
  assert dataset.statistics.empty_slots == {
    'fewer teachers than group.teachers': 32
  }
  found = dataset.first(20)
  assert not {4, 5, 8} & set(found.index)
  # Nothing is cut: every given answer ends with its EOS.
  last = np.take_along_axis(
    found.given_tokens, np.maximum(found.given_length - 1, 0)[..., None], -1
  )
  eos = arithmetic.tokenizer().eos_token_id
  assert (last[..., 0] == eos)[found.given_length > 0].all()
  place = list(found.index).index(7)
  assert found.given_texts[place][1:] == ['#12345678', '#7']
  assert dataset.statistics.tokens['expert'].max() == 10
  assert dataset.statistics.tokens['teacher'].tolist() == [10, 3]
  assert dataset.statistics.tokens['prompt'].size == 17


def test_a_slot_without_a_teacher_that_fits_is_counted(load):
  some = rows(4)
  some[0]['teacher'] = ['#12345678901234', '#1']
  dataset = load(some, max_response=10)
  assert dataset.statistics.empty_slots == {
    'teachers longer than data.max_response=10': 1,
    'fewer teachers than group.teachers': 6,
  }


def test_too_much_dropped_stops_with_both_numbers(load):
  long = rows(10)
  for row in long[:3]:
    row['expert'] = '1,' * 50
  load(long, max_dropped=0.3)
  with pytest.raises(ConfigError) as caught:
    load(long, max_dropped=0.2)
  assert str(caught.value).endswith(
    '3 of 10 rows are dropped (3 experts longer than data.max_response=40),'
    ' a share of 0.30 above data.max_dropped=0.2'
  )
  # A group without experts has no use for them.
  own = GroupConfig(experts=0, teachers=0, samples=4)
  assert len(load(long, own, max_dropped=0.0)) == 10


def test_nothing_left_stops_at_any_threshold(load):
  with pytest.raises(ConfigError, match='5 of 5 rows are dropped'):
    load(rows(5), max_prompt=2, max_dropped=1.0)


def test_a_group_without_given_answers(load):
  own = GroupConfig(experts=0, teachers=0, samples=4)
  found = next(load(rows(8), own).batches(4, 0))
  assert found.given_tokens.shape == (4, 0, 40)
  assert found.given_length.shape == (4, 0)
  assert found.given_texts == [[]] * 4


def test_teachers_are_chosen_by_seed_and_row(load):
  some = rows(30)
  for row in some:
    row['teacher'] = [f'#{k}' for k in range(6)]
  chosen = load(some).first(30).given_texts
  assert load(some).first(30).given_texts == chosen
  assert load(some, seed=1).first(30).given_texts != chosen
  pairs = {tuple(texts[1:]) for texts in chosen}
  assert len(pairs) > 5 and all(a < b for a, b in pairs)
  # Other rows do not change the choice of a row.
  fewer = load(some[:7]).first(30).given_texts
  assert fewer == chosen[:7]


def test_missing_experts_leave_empty_slots(load):
  some = [{'prompt': '1:', 'answer': '1'}] * 4
  dataset = load(some)
  assert dataset.statistics.empty_slots['rows without an expert'] == 4
  assert (dataset.first(4).given_length == 0).all()


QUESTION = {'prompt': 'how many ?', 'answer': '2', 'expert': 'two 2'}


@pytest.mark.parametrize(
  'bos, prompt, expected',
  [
    (False, 'how many ?', 'how many ?'),
    (True, 'how many ?', '<s> how many ?'),
    (True, '<s> how many ?', '<s> how many ?'),
  ],
)
def test_bos_comes_once(load, bos, prompt, expected):
  tokenizer = word_tokenizer(bos, pad_token='[PAD]')
  found = load([{**QUESTION, 'prompt': prompt}], tokenizer=tokenizer).first(1)
  ids = found.tokens[0, : found.length[0]]
  assert tokenizer.decode(ids) == expected
  given = found.given_tokens[0, 0, : found.given_length[0, 0]]
  assert tokenizer.decode(given) == 'two 2 </s>', 'no BOS before an answer'


TEMPLATE = (
  "{{ bos_token }}{% for m in messages %} {{ m['role'] }} {{ m['content'] }}"
  '{% endfor %}{% if add_generation_prompt %} assistant{% endif %}'
)


@pytest.mark.parametrize(
  'template, expected',
  [
    ('auto', '<s> user how many ? assistant'),
    ('chat', '<s> user how many ? assistant'),
    ('plain', '<s> how many ?'),
  ],
)
def test_the_chat_template(load, template, expected):
  tokenizer = word_tokenizer(bos=True, pad_token='[PAD]')
  tokenizer.chat_template = TEMPLATE
  found = load([QUESTION], tokenizer=tokenizer, template=template).first(1)
  assert tokenizer.decode(found.tokens[0, : found.length[0]]) == expected
  assert found.prompts == ['how many ?'], 'the grader sees the question'


def test_a_chat_template_that_is_not_there(load):
  with pytest.raises(ConfigError, match='no chat template; use plain'):
    load(rows(4), template='chat')


def test_the_instruction_follows_on_a_line(load):
  tokenizer = word_tokenizer(pad_token='[PAD]')
  found = load([QUESTION], tokenizer=tokenizer, instruction='two').first(1)
  assert found.tokens[0, :4].tolist() == tokenizer('how many ? two').input_ids


# Each turn of the assistant ends with EOS.
TALK = TEMPLATE.replace(
  '{% endfor %}',
  "{% if m['role'] == 'assistant' %} </s>{% endif %}{% endfor %}",
)
DEMONSTRATIONS = GroupConfig(experts=1, teachers=0, samples=0)


@pytest.fixture
def talk():
  tokenizer = word_tokenizer(bos=True, pad_token='[PAD]')
  tokenizer.chat_template = TALK
  return tokenizer


def turns(*contents):
  """user, assistant, user, ..."""
  return [
    {'role': ('user', 'assistant')[i % 2], 'content': content}
    for i, content in enumerate(contents)
  ]


SYSTEM = {'role': 'system', 'content': 'two ?'}


def read(tokenizer, found, row=0):
  """The prompt, the expert, and what of it trains."""
  length = found.given_length[row, 0]
  given = found.given_tokens[row, 0, :length]
  trains = found.given_trained[row, 0, :length]
  return (
    tokenizer.decode(found.tokens[row, : found.length[row]]),
    tokenizer.decode(given),
    tokenizer.decode(given[trains]),
  )


def test_of_a_conversation_the_answers_train(load, talk):
  messages = [SYSTEM, *turns('how many ?', 'two', 'how ?', '2 2')]
  rows = [{'messages': messages}, {'messages': turns('how ?', '2')}]
  dataset = load(rows, DEMONSTRATIONS, talk, instruction='many')
  found = dataset.first(2)
  assert read(talk, found) == (
    '<s> system two ? user how many ? many assistant',
    'two </s> user how ? assistant 2 2 </s>',
    'two </s> 2 2 </s>',
  )
  assert read(talk, found, 1) == (
    '<s> user how ? many assistant',
    *['2 </s>'] * 2,
  )
  assert not found.given_trained[0, 0, found.given_length[0, 0] :].any()
  assert found.prompts == ['how many ?', 'how ?'], 'what the grader sees'
  assert found.given_texts == [['2 2'], ['2']]
  assert dataset.statistics.tokens['expert'].tolist() == [9, 2]
  given = pipeline.given_of(found)
  np.testing.assert_array_equal(given.trained, found.given_trained)
  # An epoch carries the mask along.
  batches = dataset.batches(2, 0)
  for _ in range(3):
    batch = next(batches)
    assert batch.given_trained.sum() == 7
    assert batch.given_trained.shape == batch.given_tokens.shape


def test_the_system_turn_of_the_settings(load, talk):
  """In front of every prompt but those that have one, which are named."""
  own = [SYSTEM, *turns('how ?')]
  equal = [{'role': 'system', 'content': 'many 2'}, *turns('how ?')]
  some = [QUESTION, *({**QUESTION, 'prompt': x} for x in (own, equal, '2 ?'))]
  dataset = load(some, OWN, talk, system='many 2')
  found = dataset.first(4)
  asked = [
    talk.decode(tokens[:n]) for tokens, n in zip(found.tokens, found.length)
  ]
  assert asked == [
    '<s> system many 2 user how many ? assistant',
    '<s> system two ? user how ? assistant',
    '<s> system many 2 user how ? assistant',
    '<s> system many 2 user 2 ? assistant',
  ]
  assert found.prompts == ['how many ?', 'how ?', 'how ?', '2 ?']
  assert dataset.statistics.notes == {pipeline.OWN_SYSTEM: [2]}
  assert dataset.statistics.lines() == [
    'a system turn of their own stands in place of data.system, 1 row: 2'
  ]
  plain = load(some, OWN, talk)
  assert plain.statistics.notes == {}
  assert plain.fingerprint != dataset.fingerprint
  settings = DataConfig(system='many 2')
  (ids,) = pipeline.encode_prompts(['how many ?'], settings, talk)
  assert talk.decode(ids) == asked[0]


def test_another_mask_is_other_data(load, talk):
  some = [{'messages': turns('how many ?', 'two', 'how ?', '2 2')}] * 2
  one = load(some, DEMONSTRATIONS, talk)
  talk.chat_template = TALK.replace(
    "{{ m['content'] }}",
    '{% generation %}'  # also of a user: all of the answer trains
    "{{ m['content'] }}"
    '{% endgeneration %}',
  )
  other = load(some, DEMONSTRATIONS, talk)
  (a,), (b,) = one.first(1).given_tokens, other.first(1).given_tokens
  np.testing.assert_array_equal(a, b)
  assert read(talk, other.first(1))[2] == 'two how ? 2 2 </s>'
  assert one.fingerprint != other.fingerprint


def test_teachers_of_a_conversation_train_whole(load, talk):
  group = GroupConfig(experts=1, teachers=1, samples=1)
  messages = turns('how many ?', 'two', 'how ?', '2')
  some = [{'messages': messages, 'answer': '2', 'teacher': ['two 2']}] * 2
  some += [{'messages': turns('how ?', '2'), 'answer': 2, 'teacher': ['2']}]
  found = load(some, group, talk).first(3)
  for row, count in ((0, 3), (2, 2)):
    assert found.given_length[row, 1] == count
    assert found.given_trained[row, 1].sum() == count
  assert found.given_trained[2, 0].sum() == 2


def test_messages_of_one_answer_equal_prompt_and_completion(load, talk):
  text = {'prompt': 'how many ?', 'completion': 'two 2'}
  one = load([text] * 2, DEMONSTRATIONS, talk, instruction='2')
  other = load(
    [{'messages': turns('how many ?', 'two 2')}] * 2,
    DEMONSTRATIONS,
    talk,
    instruction='2',
  )
  assert one.fingerprint == other.fingerprint
  assert same(one.first(2), other.first(2))
  assert one.first(2).given_trained is None


def test_a_prompt_of_turns_goes_through_the_template(load, talk):
  asked = [SYSTEM, *turns('how many ?', 'two', 'how ?')]
  row = {
    'prompt': asked,
    'reward_model': {'ground_truth': '2'},
    'extra_info': {'answer': '2 2', 'model_answer': ['2', 'two']},
  }
  found = load([row] * 4, GROUP, talk).first(1)
  assert talk.decode(found.tokens[0, : found.length[0]]) == (
    '<s> system two ? user how many ? assistant two </s> user how ? assistant'
  )
  assert found.prompts == ['how ?'] and found.answers == ['2']
  assert found.given_texts == [['2 2', '2', 'two']]
  assert found.given_trained is None


def test_a_conversation_needs_a_template(load, talk):
  some = [QUESTION, {**QUESTION, 'prompt': [SYSTEM, *turns('how ?')]}]
  with pytest.raises(ConfigError, match='row 2 is a conversation and needs a'):
    load(some, OWN, talk, template='plain')
  talk.chat_template = None
  with pytest.raises(ConfigError, match=r'row 2 is a conv.*has none'):
    load(some, OWN, talk)


def test_turns_that_the_template_refuses_are_dropped_and_named(load, talk):
  talk.chat_template = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system turns') }}{% endif %}" + TALK
  )
  some = [{'prompt': turns('how ?'), 'answer': '2'}] * 4
  some[2] = {'prompt': [SYSTEM, *turns('?')], 'answer': '2'}
  dataset = load(some, OWN, talk, max_dropped=0.5)
  assert dataset.statistics.dropped == {
    'that the chat template refuses: no system turns': [3]
  }
  assert dataset.first(4).index.tolist() == [1, 2, 4]


def test_what_cannot_be_graded_is_only_shown(load, talk):
  some = [{'prompt': 'how ?', 'completion': text} for text in ('2', '#### 2')]
  assert len(load(some, DEMONSTRATIONS, talk)) == 2
  graded = GroupConfig(experts=1, teachers=0, samples=1)
  dataset = load(some, graded, talk, max_dropped=0.5)
  assert dataset.first(2).answers == ['2']
  assert dataset.statistics.dropped == {
    'without a reference answer to grade by': [1]
  }
  with pytest.raises(
    ConfigError, match=r'1 of 2 rows are dropped \(1 without a'
  ):
    load(some, graded, talk)
  with pytest.raises(ConfigError, match=r'1 of 1 rows are dropped \(1 without'):
    load(some[:1], graded, talk, max_dropped=1.0)


def test_pad_that_is_eos_keeps_its_eos(load):
  tokenizer = word_tokenizer(pad_token='</s>')
  found = load([QUESTION], tokenizer=tokenizer).first(1)
  assert found.given_length[0, 0] == 3
  assert found.given_tokens[0, 0, 2] == tokenizer.eos_token_id


def test_a_tokenizer_without_eos(load):
  tokenizer = arithmetic.tokenizer()
  tokenizer.eos_token = None
  with pytest.raises(ConfigError, match='no EOS token'):
    load(rows(4), tokenizer=tokenizer)


def test_a_prompt_without_tokens_is_dropped(load):
  tokenizer = word_tokenizer(pad_token='[PAD]')
  tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.Replace(
    '?', ''
  )
  some = [QUESTION] * 4 + [{**QUESTION, 'prompt': '??'}]
  dataset = load(some, tokenizer=tokenizer)
  assert dataset.statistics.dropped == {'prompts without tokens': [5]}


def test_the_embedded_task_fits_its_recipes(tmp_path, monkeypatch):
  monkeypatch.setitem(arithmetic.SIZES, 'train', 400)
  monkeypatch.setitem(arithmetic.SIZES, 'pretrain', 400)
  config = DataConfig(cache=str(tmp_path), max_prompt=16, max_response=40)
  tokenizer = arithmetic.tokenizer()
  dataset = data.load(config, GroupConfig(), tokenizer, 'train')
  assert (len(dataset), dataset.statistics.dropped) == (400, {})
  batches = dataset.batches(128, 0)
  batch = next(batches)
  assert (batch.given_length > 0).all()
  for i in range(128):
    ids = batch.tokens[i, : batch.length[i]]
    assert tokenizer.decode(ids) == batch.prompts[i]
    assert str(eval(batch.prompts[i][:-1])) == batch.answers[i]
    for slot, text in enumerate(batch.given_texts[i]):
      ids = batch.given_tokens[i, slot, : batch.given_length[i, slot]]
      assert tokenizer.decode(ids) == text + '$'


def test_gsm8k_is_tokenised_in_seconds(tmp_path, shared):
  config = DataConfig(
    path=str(shared / 'data/gsm8k/train.parquet'),
    cache=str(tmp_path),
    max_prompt=220,
    max_response=1000,
  )
  tokenizer = word_tokenizer(pad_token='[UNK]')
  start = time.perf_counter()
  dataset = data.load(config, GROUP, tokenizer, 'train')
  assert time.perf_counter() - start < 30
  assert len(dataset) == 7217 and dataset.statistics.dropped == {}
  found = dataset.first(1)
  assert found.answers == ['72'] and found.given_texts[0][0].endswith('#### 72')
