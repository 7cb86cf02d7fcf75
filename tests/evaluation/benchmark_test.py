"""Benchmarks: how questions are batched, and how an interrupted one goes on."""

import io
import json
import types

import numpy as np
import pytest

from gft_jax.batch import Responses
from gft_jax.config import (
  Architecture,
  Config,
  ConfigError,
  EvalConfig,
  RewardConfig,
  override,
)
from gft_jax.evaluation.benchmark import ask_benchmark, questions_of
from gft_jax.rewards.grader import Grader, score_groups


class Script:
  """An engine whose policy writes f'{index}.{member}' and is asked for lists."""

  def __init__(self, fails_at=None):
    architecture = Architecture(vocab_size=9, max_positions=200)
    self.model = types.SimpleNamespace(architecture=architecture)
    self.asked = []
    self.fails_at = fails_at
    self.told = set()

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

  def decode(self, responses, sampling, prompts):
    texts = [
      [f'#{row[0, 0]}{g}' for g in range(len(row))] for row in responses.tokens
    ]
    return texts, np.ones(responses.length.shape, bool)

  def score(self, settings, name, problems, texts, present, finished):
    with Grader(settings) as grader:
      return score_groups(grader, problems, texts, present, finished)


LENGTHS = [3, 70, 5, 130, 64, 1, 65, 300, 2]


def ask(folder, engine, **settings):
  """Nine questions; the reference answer is the second answer of the policy."""
  config = Config(
    reward=RewardConfig(function='arithmetic'),
    eval=EvalConfig(samples=2, ks=(1, 2), batch_size=3, max_response=100),
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
  ('most', 'mesh', 'sizes'),
  [(32, 1, [8]), (5, 1, [4, 4]), (7, 1, [4, 4]), (6, 2, [4, 4]), (12, 3, [9])],
)
def test_a_batch_is_as_large_as_what_is_asked(tmp_path, most, mesh, sizes):
  """Eight questions can be asked."""
  engine = Script()
  ask(tmp_path, engine, **{'eval.batch_size': most, 'mesh.data': mesh})
  assert [len(prompts.index) for prompts, *_ in engine.asked] == sizes
  whole = Script()
  ask(tmp_path / 'threes', whole)
  threes = (tmp_path / 'threes' / 'sums.jsonl').read_bytes()
  assert (tmp_path / 'sums.jsonl').read_bytes() == threes


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


def test_a_truncated_file_of_answers_is_refused(tmp_path):
  ask(tmp_path, Script())
  path = tmp_path / 'sums.jsonl'
  path.write_text(''.join(path.read_text().splitlines(keepends=True)[:6]))
  with pytest.raises(ConfigError, match='has answers to 3 problems of 9'):
    ask(tmp_path, Script())


@pytest.mark.parametrize(
  ('terminal', 'progress', 'shown'),
  [(True, 'true', True), (True, 'false', False), (False, 'true', False)],
)
def test_a_progress_bar_is_shown_on_terminals_if_wanted(
  tmp_path, monkeypatch, terminal, progress, shown
):
  stderr = io.StringIO()
  stderr.isatty = lambda: terminal
  monkeypatch.setattr('sys.stderr', stderr)
  ask(tmp_path, Script(), **{'log.progress': progress})
  assert ('sums: 100%' in stderr.getvalue()) == shown


def test_too_many_overlong_questions_are_refused(tmp_path):
  with pytest.raises(ConfigError, match=r'sums: 5 of 9 .* 1, 3, 4, 6, 7; that'):
    ask(tmp_path, Script(), **{'data.max_prompt': 10})
  assert not list(tmp_path.iterdir())
