"""The embedded task against an evaluator of its own: Python's."""

import collections
import itertools
import re

import pytest
import transformers

from gft_jax.data import arithmetic

TERM = re.compile(r'([+-]?)([\d*]+)')
STEP = re.compile(r'(\d+[+*-]\d+)=(\d+)')


@pytest.fixture(scope='module')
def train():
  return list(arithmetic.rows('train', size=4000))


@pytest.fixture(scope='module')
def pretrain():
  return list(arithmetic.rows('pretrain', size=12_000))


def terms(prompt):
  """(sign, value) of each term."""
  found = TERM.findall(prompt[:-1])
  return [(-1 if sign == '-' else 1, eval(text)) for sign, text in found]


def style(text):
  if text.startswith('p'):
    return 'terse'
  if '=' in text:
    return 'verbose' if ';' in text else 'steps'
  return 'direct' if text.startswith('#') else 'running'


def test_answers_are_what_python_computes(train, pretrain):
  held_out = [arithmetic.rows(split) for split in arithmetic.HELD_OUT]
  for row in itertools.chain(train, pretrain, *held_out):
    assert row['answer'] == str(eval(row['prompt'][:-1])), row
    totals = itertools.accumulate(s * v for s, v in terms(row['prompt']))
    assert min(totals) >= 0, row


@pytest.mark.parametrize(
  'split, counts, products',
  [
    ('train', {3, 4, 5}, {0}),
    ('test', {3, 4, 5}, {0}),
    ('ood_length', {6, 7}, {0}),
    ('ood_operator', {3, 4, 5}, {1}),
    ('pretrain', {2, 3, 4, 5, 6, 7}, {0, 1}),
  ],
)
def test_splits_have_their_levels(split, counts, products):
  rows = list(arithmetic.rows(split, size=500))
  assert {len(terms(row['prompt'])) for row in rows} == counts
  assert {row['prompt'].count('*') for row in rows} == products


def test_examples_of_every_style():
  chain = [(1, '7', 7), (1, '8', 8), (-1, '3', 3), (1, '5', 5)]
  chain = [arithmetic.Term(*term) for term in chain]
  texts = {
    name: write(chain, int) for name, write in arithmetic._STYLES.items()
  }
  assert texts == {
    'direct': '#17',
    'running': '15,12,17#17',
    'steps': '7+8=15,15-3=12,12+5=17#17',
    'terse': 'p20n3#17',
    'verbose': '7+8=15;15+5=20;20-3=17#17',
    **dict.fromkeys(('hesitant', 'repeating', 'guessing'), '15,12,17#17'),
  }
  product = [arithmetic.Term(1, '7', 7), arithmetic.Term(-1, '2*3', 6)]
  assert arithmetic._steps(product, int) == '2*3=6,7-6=1#1'


def test_the_terse_expert_is_right(train):
  for row in train:
    plus, minus, answer = map(
      int, re.fullmatch(r'p(\d+)n(\d+)#(\d+)', row['expert']).groups()
    )
    assert plus == sum(v for s, v in terms(row['prompt']) if s > 0)
    assert minus == sum(v for s, v in terms(row['prompt']) if s < 0)
    assert answer == int(row['answer'])


def test_the_verbose_expert_is_right_and_asks_the_same(train):
  rows = list(arithmetic.rows('train', expert='verbose', size=len(train)))
  for row, terse in zip(rows, train):
    assert row['prompt'] == terse['prompt']
    assert row['teacher'] == terse['teacher']
    written, _, answer = row['expert'].partition('#')
    assert answer == row['answer']
    for step in written.split(';'):
      left, right = step.split('=')
      assert eval(left) == int(right), row
    signs = [re.search(r'[+-]', step)[0] for step in written.split(';')]
    assert signs == sorted(signs, key='+-'.index), 'positives first'


def test_the_hesitant_expert_errs_first_and_is_right(train):
  rows = list(arithmetic.rows('train', expert='hesitant', size=len(train)))
  wrong = 0
  for row, terse in zip(rows, train):
    assert row['prompt'] == terse['prompt']
    assert row['teacher'] == terse['teacher']
    totals = itertools.accumulate(s * v for s, v in terms(row['prompt']))
    written, _, answer = row['expert'].partition('#')
    assert answer == row['answer']
    for number, total in zip(written.split(','), list(totals)[1:], strict=True):
      first, _, second = number.rpartition(':')
      assert second == str(total)
      assert first != second
      wrong += bool(first)
  numbers = sum(row['expert'].count(',') + 1 for row in rows)
  # A slip below 0 is cut, so one at 0 or 1 may be none.
  assert wrong / numbers == pytest.approx(0.48, abs=0.02)
  (held_out,) = (
    {row['expert'] for row in arithmetic.rows('test', expert='hesitant')},
  )
  assert any(':' in text for text in held_out)


def test_the_controls_of_the_hesitant_expert_differ_where_it_hesitates(train):
  hesitant, repeating, guessing = (
    [row['expert'] for row in arithmetic.rows('train', expert=style, size=500)]
    for style in ('hesitant', 'repeating', 'guessing')
  )
  assert repeating == [re.sub(r'\d+:(\d+)', r'\1:\1', t) for t in hesitant]
  assert guessing == [text.replace(':', ',') for text in hesitant]
  assert len({*hesitant, *repeating, *guessing}) > 1000


def test_only_a_written_derivation_counts_as_worked():
  prompt, answer = '7+8-3+5:', '17'

  def worked(text):
    return arithmetic.worked(prompt, answer, text)

  right = ('15,12,17#17', '7+8=15,15-3=12,12+5=17#17', 'p20n3#17')
  assert [worked(text) for text in (*right, '7+8=15;15+5=20;20-3=17#17')] == [
    *(1.0, 1.0, 1.0, 1.0)
  ]
  wrong = ('#17', '15,13,17#17', 'p21n4#17', '15,12,17#18', '15,12#17', '')
  assert [worked(text) for text in wrong] == [0.0] * len(wrong)
  product = '7-2*3:'
  assert arithmetic.worked(product, '1', '2*3=6,7-6=1#1') == 1
  assert arithmetic.worked(product, '1', '7-6=1#1') == 0
  train = itertools.islice(arithmetic.rows('train'), 500)
  for row in train:
    assert arithmetic.worked(row['prompt'], row['answer'], row['expert']) == 1


def test_teachers_slip_at_the_stated_rate(train):
  answers = [(row, text) for row in train for text in row['teacher']]
  assert len(answers) == 7 * len(train)
  steps = [
    eval(left) != int(right)
    for _, text in answers
    for left, right in STEP.findall(text)
  ]
  # 42,000 steps: a standard error of .001.
  assert sum(steps) / len(steps) == pytest.approx(0.04, abs=0.006)
  styles = collections.Counter(style(text) for _, text in answers)
  assert styles.keys() == {'running', 'steps'}
  assert styles['steps'] / len(answers) == pytest.approx(0.5, abs=0.02)
  right = [text.rpartition('#')[2] == row['answer'] for row, text in answers]
  assert sum(right) / len(right) == pytest.approx(0.885, abs=0.02)


def test_the_error_of_a_slip_is_carried_on(train):
  wrong = 0
  for row in train:
    for text in row['teacher']:
      results = re.findall(r'(?:^|,|=)(\d+)(?=,|#)', text)
      assert results[-1] == text.rpartition('#')[2]
      for (_, was), (left, _) in itertools.pairwise(STEP.findall(text)):
        assert re.match(r'\d+', left)[0] == was
        wrong += 1
  assert wrong > 1000


def test_the_base_corpus_is_the_stated_mixture(pretrain):
  styles = collections.Counter(style(row['expert']) for row in pretrain)
  # A verbose answer of one step has no separator and reads as steps.
  short = [row for row in pretrain if len(terms(row['prompt'])) == 2]
  assert styles['direct'] / len(pretrain) == pytest.approx(0.40, abs=0.02)
  assert styles['running'] / len(pretrain) == pytest.approx(0.30, abs=0.02)
  assert styles['terse'] / len(pretrain) == pytest.approx(0.04, abs=0.01)
  assert len(short) / len(pretrain) == pytest.approx(0.08, abs=0.01)
  direct = [row for row in pretrain if style(row['expert']) == 'direct']
  slipped = [row['expert'][1:] != row['answer'] for row in direct]
  assert sum(slipped) / len(slipped) == pytest.approx(0.10, abs=0.02)


def test_no_held_out_prompt_is_trained_on(train, pretrain):
  held_out = set()
  for split in arithmetic.HELD_OUT:
    rows = list(arithmetic.rows(split))
    assert len({row['prompt'] for row in rows}) == len(rows) == 512
    held_out |= {row['prompt'] for row in rows}
  assert held_out == arithmetic.held_out_prompts()
  trained = {row['prompt'] for row in train + pretrain}
  assert not trained & held_out
  # The filter has work: without it short prompts would meet again.
  assert len(trained) > 5000


def test_a_split_is_a_function_of_its_name(train):
  assert list(arithmetic.rows('train', size=100)) == train[:100]
  assert {**train[0], 'teacher': train[0]['teacher'][:5]} == {
    'prompt': '3+6-4:',
    'answer': '5',
    'expert': 'p9n4#5',
    'teacher': ['9,5#5', '9,5#5', '3+6=9,9-4=5#5', '9,5#5', '19,15#15'],
  }
  assert len(list(arithmetic.rows('ood_length', size=7))) == 7


def test_texts_fit_the_default_lengths(train, pretrain):
  longest = max(len(row['prompt']) for row in train + pretrain)
  assert longest <= 16
  assert max(len(text) for row in train for text in row['teacher']) < 40
  assert max(len(row['expert']) for row in pretrain) < 52


def test_the_tokenizer_gives_every_text_back(train, pretrain, tmp_path):
  arithmetic.tokenizer().save_pretrained(tmp_path)
  saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for tokenizer in (arithmetic.tokenizer(), saved):
    assert len(tokenizer) == 23
    assert tokenizer.bos_token_id is None
    assert tokenizer.chat_template is None
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id}) == 2
    for row in (*train[:50], *pretrain[:50]):
      text = row['prompt'] + row['expert']
      ids = tokenizer(text)['input_ids']
      assert len(ids) == len(text), 'one token per character, none added'
      assert tokenizer.unk_token_id not in ids
      assert tokenizer.decode(ids) == text
      ids.append(tokenizer.eos_token_id)
      assert tokenizer.decode(ids) == text + '$'
      assert tokenizer.decode(ids, skip_special_tokens=True) == text
  assert saved('a1')['input_ids'] == [saved.unk_token_id, *saved('1').input_ids]
