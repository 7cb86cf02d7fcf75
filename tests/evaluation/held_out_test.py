import io
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gft_jax.batch import SELF, GroupBatch, Prompts, Responses
from gft_jax.config import (
  Architecture,
  Config,
  ConfigError,
  EvalConfig,
  RewardConfig,
  override,
)
from gft_jax.evaluation import generations
from gft_jax.evaluation.benchmark import ask_benchmark, questions_of
from gft_jax.evaluation.held_out import group_logprobs
from gft_jax.models import forward
from gft_jax.models.transformer import Transformer
from gft_jax.rewards.grader import Grader, score_groups
from gft_jax.rollout import groups


def pass_at_k(scores, k):
  """The share of k-subsets of a problem's samples with a right one."""
  subsets = list(itertools.combinations(scores, k))
  return np.mean([max(subset) >= 1 for subset in subsets])


def test_accuracy_counts_subsets():
  scores = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0.5, 1, 0]])
  metrics = generations.accuracy(scores, (1, 2, 4))
  assert metrics['avg@4'] == pytest.approx(scores.mean())
  for k in (1, 2, 4):
    expected = np.array([pass_at_k(row, k) for row in scores])
    assert metrics[f'pass@{k}'] == pytest.approx(expected.mean(), abs=1e-6)
    margin = 1.96 * expected.std(ddof=1) / 2
    low, high = metrics[f'pass@{k}_low'], metrics[f'pass@{k}_high']
    assert low == pytest.approx(max(expected.mean() - margin, 0), abs=1e-4)
    assert high == pytest.approx(min(expected.mean() + margin, 1), abs=1e-4)


def test_accuracy_counts_votes():
  scores = np.array([[1, 0, 0, 0], [0, 1, 1, 0]])
  votes = np.array([[0, 1, 2, 1], [0, 1, 1, -1]])
  metrics = generations.accuracy(scores, (1, 2, 4), votes)
  found = [metrics[f'maj@{k}'] for k in (1, 2, 4)]
  # Blocks of two: [1, 0 first wins], [0, 0]; [0, 1 first wins], [1, none].
  assert found == [(0.25 + 0.5) / 2, (0.5 + 0.5) / 2, (0 + 1) / 2]
  assert 0 <= metrics['maj@4_low'] < metrics['maj@4_high'] <= 1


@pytest.mark.parametrize(
  ('samples', 'ks'),
  [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (16, (1, 2, 4, 8, 16))],
)
def test_sensible_ks(samples, ks):
  assert generations.sensible_ks(samples) == ks
  EvalConfig(samples=samples, ks=ks)


class Script:
  """An engine whose policy writes f'{index}.{member}' and is asked for lists."""

  def __init__(self, fails_at=None):
    architecture = Architecture(vocab_size=9, max_positions=200)
    self.model = types.SimpleNamespace(architecture=architecture)
    self.asked = []
    self.fails_at = fails_at

  def key(self, stream, step):
    return (stream, step)

  def sample(self, params, prompts, key, sampling, samples, most):
    if len(self.asked) == self.fails_at:
      raise KeyboardInterrupt
    self.asked.append((prompts, sampling, samples, most))
    length = np.ones((len(prompts.index), samples), np.int32)
    tokens = np.zeros((*length.shape, most), np.int32)
    tokens[..., 0] = prompts.index[:, None]
    return Responses(tokens, length, np.zeros(tokens.shape, np.float32))

  def decode(self, responses, sampling):
    texts = [
      [f'#{row[0, 0]}{g}' for g in range(len(row))] for row in responses.tokens
    ]
    return texts, np.ones(responses.length.shape, bool)

  def score(self, settings, name, prompts, answers, texts, present, finished):
    with Grader(settings) as grader:
      return score_groups(grader, prompts, answers, texts, present, finished)


LENGTHS = [3, 70, 5, 130, 64, 1, 65, 300, 2]


def ask(folder, engine, **settings):
  """Nine questions; the reference answer is the second answer of the policy."""
  config = Config(
    eval=EvalConfig(samples=2, ks=(1, 2), batch_size=3, max_response=100)
  )
  for name, value in ({'data.max_prompt': 150} | settings).items():
    config = override(config, f'{name}={value}')
  questions = questions_of(
    'sums',
    [{'prompt': f'question {i}', 'answer': f'{i}1'} for i in range(9)],
    [[7] * length for length in LENGTHS],
    config.data.max_prompt,
    config.data.max_dropped,
  )
  return ask_benchmark(engine, None, questions, config, folder)


def test_a_benchmark_is_asked_by_length_and_kept_by_number(tmp_path, caplog):
  engine = Script()
  metrics = ask(tmp_path, engine)
  assert 'sums: 1 of 9 questions cannot' in caplog.text
  assert 'problems 7; they count as wrong' in caplog.text
  assert metrics['problems'] == 9 and metrics['not_asked'] == 1
  # Question 7 is too long, and counts: 8 of 18 answers are right, 8 of 9 passed.
  assert metrics['avg@2'] == pytest.approx(8 / 18)
  assert metrics['pass@2'] == pytest.approx(8 / 9)
  lines = [
    json.loads(line)
    for line in (tmp_path / 'sums.jsonl').read_text().splitlines()
  ]
  assert [(line['index'], line['response']) for line in lines] == [
    (i, '' if i == 7 else f'#{i}{g}') for i in range(9) for g in range(2)
  ]
  assert {line['finished'] for line in lines if line['index'] == 7} == {False}
  # The longest first, each batch as wide as it needs, its padding cut short.
  indexes = [prompts.index.tolist() for prompts, *_ in engine.asked]
  assert indexes == [[3, 1, 6], [4, 2, 0], [8, 5, 5]]
  widths = [prompts.tokens.shape[1] for prompts, *_ in engine.asked]
  assert widths == [150, 64, 64]
  limits = [prompts.limit.tolist() for prompts, *_ in engine.asked]
  # Prompt and answer share 200 positions.
  assert limits == [[70, 100, 100], [100] * 3, [100, 100, 1]]
  for prompts, *_ in engine.asked:
    for row, index, length in zip(
      prompts.tokens, prompts.index, prompts.length
    ):
      assert row.tolist() == [7] * length + [0] * (len(row) - length)
      assert length == LENGTHS[index]


@pytest.mark.parametrize(
  ('batches', 'cut', 'more', 'left'),
  [
    (0, 0, '', 3),
    (1, 0, '', 2),
    (2, 0, '', 1),
    # Of the next batch one answer and a half were written.
    (1, 0, '{"index": 99}\n{"ind', 2),
    # The last answer of a batch lacks an end, or only the end of its line.
    (2, 9, '', 2),
    (2, 1, '', 2),
  ],
)
def test_a_benchmark_goes_on_where_it_was_interrupted(
  tmp_path, batches, cut, more, left
):
  ask(tmp_path / 'whole', Script())
  folder = tmp_path / 'interrupted'
  with pytest.raises(KeyboardInterrupt):
    ask(folder, Script(fails_at=batches))
  partial = folder / 'sums.partial'
  written = partial.read_text()
  partial.write_text(written[: len(written) - cut] + more)
  again = Script()
  ask(folder, again)
  assert len(again.asked) == left
  expected = (tmp_path / 'whole' / 'sums.jsonl').read_bytes()
  assert (folder / 'sums.jsonl').read_bytes() == expected
  assert [p.name for p in folder.iterdir()] == ['sums.jsonl']


def test_a_file_that_somebody_has_cut_is_one_line(tmp_path):
  ask(tmp_path, Script())
  path = tmp_path / 'sums.jsonl'
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:6]))
  with pytest.raises(ConfigError, match='has answers to 3 problems of 9'):
    ask(tmp_path, Script())


@pytest.mark.parametrize(
  ('terminal', 'progress', 'shown'),
  [(True, 'true', True), (True, 'false', False), (False, 'true', False)],
)
def test_a_bar_for_who_sees_it(
  tmp_path, monkeypatch, terminal, progress, shown
):
  stderr = io.StringIO()
  stderr.isatty = lambda: terminal
  monkeypatch.setattr('sys.stderr', stderr)
  ask(tmp_path, Script(), **{'log.progress': progress})
  assert ('sums: 100%' in stderr.getvalue()) == shown


def test_too_many_questions_that_cannot_be_asked_are_one_line(tmp_path):
  with pytest.raises(ConfigError, match=r'sums: 5 of 9 .* 1, 3, 4, 6, 7; that'):
    ask(tmp_path, Script(), **{'data.max_prompt': 10})
  assert not list(tmp_path.iterdir())


def test_claim_names_what_has_changed(tmp_path):
  config, facts = Config(), {'weights': 'a', 'questions of x': 'b'}
  generations.check_settings(tmp_path, config, facts)
  generations.check_settings(
    tmp_path, override(config, 'log.progress=false'), facts
  )
  generations.check_settings(
    tmp_path, config, {'weights': 'a', 'questions of y': 'c'}
  )
  kept = (tmp_path / 'settings.json').read_text()
  for changed, also, message in [
    (override(config, 'model.path=m'), {}, "model.path: '' -> 'm'"),
    (config, {'weights': 'z'}, "weights: 'a' -> 'z'; use a new --out"),
    (config, {'questions of x': 'z'}, "questions of x: 'b' -> 'z'"),
    (config, {'questions of y': 'z'}, "questions of y: 'c' -> 'z'"),
  ]:
    with pytest.raises(ConfigError, match=message):
      generations.check_settings(tmp_path, changed, facts | also)
  assert (tmp_path / 'settings.json').read_text() == kept
  (tmp_path / 'settings.json').write_text('{"config": {}}')
  with pytest.raises(ConfigError, match=r'settings\.json is not of an evaluat'):
    generations.check_settings(tmp_path, config, facts)


def test_a_fingerprint_changes_with_any_parameter():
  def params(at=None):
    tree = {'a': np.ones((2, 3, 4)), 'b': np.zeros(5), 'c': np.float32(1)}
    return tree | ({at: tree[at] + 1e-6} if at else {})

  prints = [generations.fingerprint(params(at)) for at in (None, *'abc', None)]
  assert prints[0] == prints[-1] and len(set(prints)) == 4


def write_answers(path, scores, responses=None):
  """One line per score [problems][samples]."""
  lines = []
  for i, row in enumerate(scores):
    for g, score in enumerate(row):
      text = responses[i][g] if responses else ''
      entry = (i, f'question {i}', f'{i}', text, True, score)
      lines.append(dict(zip(generations.KEPT, entry)))
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return path


def test_paired_differences(tmp_path):
  before = write_answers(tmp_path / 'a.jsonl', [[1], [1], [0], [0], [1]])
  after = write_answers(
    tmp_path / 'b.jsonl', [[1, 1], [0, 1], [1, 1], [0, 0], [0, 0]]
  )
  found = generations.paired(before, after)
  differences = np.array([0, -0.5, 1, 0, -1])
  reach = 1.96 * differences.std(ddof=1) / 5**0.5
  assert found == {
    'problems': 5,
    'before': pytest.approx(0.6),
    'after': pytest.approx(0.5),
    'difference': pytest.approx(-0.1),
    'difference_low': pytest.approx(-0.1 - reach, abs=1e-6),
    'difference_high': pytest.approx(-0.1 + reach, abs=1e-6),
    'gained': 1,
    'lost': 2,
  }


def test_pairs_are_of_one_number_whatever_the_order_of_the_lines(tmp_path):
  before = write_answers(tmp_path / 'a.jsonl', [[1], [0], [0]])
  after = tmp_path / 'b.jsonl'
  lines = before.read_text().splitlines()
  after.write_text('\n'.join(reversed(lines)))
  found = generations.paired(before, after)
  assert (found['gained'], found['lost']) == (0, 0)


def test_answers_to_other_problems_are_not_compared(tmp_path):
  before = write_answers(tmp_path / 'a.jsonl', [[1], [1]])
  after = write_answers(tmp_path / 'b.jsonl', [[1], [1], [0]])
  with pytest.raises(ConfigError, match=r'they differ in 2$'):
    generations.paired(before, after)
  text = before.read_text().replace('question 1', 'another')
  after.write_text(text)
  with pytest.raises(ConfigError, match=r'they differ in 1$'):
    generations.paired(before, after)


def test_regrade_votes_by_what_is_extracted(tmp_path):
  responses = [
    [r'\boxed{0}', '3', 'it is 0.', '5'],
    ['8', r'\boxed{1}', r'\boxed{ 1.0 }', '9'],
    ['?', '?', '?', '2'],
  ]
  path = write_answers(tmp_path / 'a.jsonl', [[0] * 4] * 3, responses)
  metrics = generations.regrade(path, RewardConfig(function='math'))
  assert metrics['problems'] == 3
  assert metrics['avg@4'] == pytest.approx(5 / 12)
  assert metrics['maj@4'] == metrics['pass@4'] == 1
  assert {f'maj@{k}' for k in (1, 2, 4)} <= set(metrics)
  assert metrics['reward_failures/parse'] == 3
  with pytest.raises(ConfigError, match=r'too few for eval.ks=\(1, 8\)'):
    generations.regrade(path, RewardConfig(function='math'), (1, 8))


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('', 'holds no answer'),
    ('not JSON', 'line 1 is no answer'),
    ('[]', 'line 1 is no answer'),
    ('{"index": 0}', 'line 1 is no answer'),
  ],
)
def test_a_file_without_answers_is_one_line(tmp_path, line, message):
  path = tmp_path / 'a.jsonl'
  with pytest.raises(ConfigError, match='does not exist'):
    generations.read_answers(path)
  path.write_text(line)
  with pytest.raises(ConfigError, match=message):
    generations.read_answers(path)


def test_answers_without_grades_or_of_uneven_number_are_one_line(tmp_path):
  path = write_answers(tmp_path / 'a.jsonl', [[None], [1]])
  with pytest.raises(ConfigError, match='line 1 is no answer'):
    generations.read_answers(path)
  write_answers(path, [[1, 0], [1]])
  with pytest.raises(ConfigError, match='from 1 to 2 answers to a problem'):
    generations.read_answers(path)


class Naming:
  """An engine whose log-probabilities name prompt, token and place."""

  def __init__(self):
    self.asked = []

  def token_logprobs(self, params, batch, *, chunk):
    tokens = batch.responses.tokens
    self.asked.append(tokens.shape)
    place = np.arange(tokens.shape[-1])
    named = 1000 * batch.prompts.index[:, None, None] + 10 * tokens + place
    return np.where(batch.token_mask, -named, 0.0).astype(np.float32)


def test_groups_are_asked_in_the_shape_of_demonstrations():
  """Three groups of two answers of three tokens, as four rows of width five."""
  length = np.array([[3, 0], [1, 2], [3, 3]], np.int32)
  tokens = np.arange(18, dtype=np.int32).reshape(3, 2, 3)
  whole = groups.build(
    Prompts(np.ones((3, 4), np.int32), np.full(3, 4), np.array([7, 8, 9])),
    Responses(tokens, length, np.zeros(tokens.shape, np.float32)),
    np.zeros((3, 2), int),
    np.zeros((3, 2), np.float32),
  )
  engine = Naming()
  config = Config(eval=EvalConfig(batch_size=4))
  found = group_logprobs(engine, None, whole, config, 5)
  assert engine.asked == [(4, 1, 5)] * 2
  expected = np.zeros((3, 2, 3))
  for b, g, t in np.ndindex(3, 2, 3):
    if t < length[b, g]:
      expected[b, g, t] = -(1000 * (7 + b) + 10 * tokens[b, g, t] + t)
  np.testing.assert_array_equal(found, expected)


def test_drift_is_exact_over_the_vocabulary():
  """Against dense log-softmax and loops over tokens."""
  vocabulary, length = 11, np.array([[3], [1], [0]])
  model = Transformer(Architecture(vocab_size=vocabulary, width=16, layers=1))
  rng = np.random.default_rng(0)
  batch = GroupBatch(
    prompts=Prompts(
      jnp.asarray(rng.integers(0, vocabulary, (3, 4)), jnp.int32),
      jnp.array([4, 2, 1]),
      jnp.arange(3),
    ),
    responses=Responses(
      jnp.asarray(rng.integers(0, vocabulary, (3, 1, 5)), jnp.int32),
      jnp.asarray(length),
      jnp.zeros((3, 1, 5)),
    ),
    rewards=jnp.zeros((3, 1)),
    origin=jnp.full((3, 1), SELF),
    member_mask=jnp.asarray(length > 0),
  )
  policy, base = (
    jax.tree.map(
      lambda x: 3 * x,
      model.init(
        jax.random.key(seed), batch.prompts.tokens, batch.prompts.length
      )['params'],
    )
    for seed in (0, 1)
  )

  def dense(params):
    variables = {'params': params}
    prefix = model.apply(
      variables, batch.prompts.tokens, batch.prompts.length, method='prefill'
    )
    hidden = model.apply(
      variables, prefix, batch.responses.tokens, method='respond'
    )
    head = model.apply(variables, method='head')
    return np.asarray(jax.nn.log_softmax(hidden @ head), np.float64)

  p, q = dense(policy), dense(base)
  rows = [(b, t) for b in range(3) for t in range(length[b, 0])]
  kl = [np.sum(np.exp(p[b, 0, t]) * (p[b, 0, t] - q[b, 0, t])) for b, t in rows]
  entropy = [-np.sum(np.exp(p[b, 0, t]) * p[b, 0, t]) for b, t in rows]
  found = forward.drift(model, policy, base, batch, chunk=2)
  assert found['kl_to_base'].value == pytest.approx(np.mean(kl), rel=1e-4)
  assert found['entropy'].value == pytest.approx(np.mean(entropy), rel=1e-4)
  per_response = sum(kl) / 2  # The third slot is empty.
  assert found['kl_to_base_per_response'].value == pytest.approx(
    per_response, rel=1e-4
  )
  same = forward.drift(model, policy, policy, batch, chunk=2)
  assert float(same['kl_to_base'].value) == 0.0


def test_pad_rows_repeats_the_last():
  padded = groups.pad_rows({'a': np.array([[1, 2], [3, 4]])}, 4)
  assert padded['a'].tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]
