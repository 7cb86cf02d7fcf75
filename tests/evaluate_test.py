"""Questions and settings of public benchmarks; how they are asked is in
experiments_test.py."""

import json

import pytest

from gft_jax import evaluate
from gft_jax.config import Config, ConfigError, override, to_dict
from gft_jax.data import benchmarks
from gft_jax.evaluation import generations


def test_names_of_benchmarks():
  assert evaluate.named_benchmarks(None) == []
  assert evaluate.named_benchmarks('all') == ['all']
  assert evaluate.named_benchmarks('gsm8k,amc23') == ['gsm8k', 'amc23']
  for text in ('', 'gsm9k'):
    with pytest.raises(ConfigError):
      evaluate.named_benchmarks(text)


def test_every_file_that_is_there_is_read_and_cut(tmp_path, monkeypatch):
  row = benchmarks.Benchmark(3, '{q}:', '{a}', 'arithmetic', '')
  monkeypatch.setitem(benchmarks.BENCHMARKS, 'sums', row)
  lines = [json.dumps({'q': f'{i}+3', 'a': i + 3}) for i in range(3)]
  (tmp_path / 'sums.jsonl').write_text('\n'.join(lines))
  found = evaluate.read_benchmarks(['all'], tmp_path, limit=2)
  assert {name: len(rows) for name, rows in found.items()} == {'sums': 2}
  with pytest.raises(ConfigError, match='none of aime24'):
    evaluate.read_benchmarks(['all'], tmp_path / 'empty')


def test_what_the_user_sets_stands():
  config = override(Config(), 'eval.samples=16')
  plain = evaluate.for_benchmarks(config, [])
  assert (plain.data.max_prompt, plain.eval.batch_size) == (2048, 8)
  own = ['data.max_prompt=99', 'reward.function=exact', 'data.instruction=']
  config = evaluate.for_benchmarks(config, own)
  assert config.data.max_prompt == 99
  one = evaluate.for_one(config, own, 'gsm8k')
  assert (one.reward.function, one.data.instruction) == ('exact', '')
  one = evaluate.for_one(plain, [], 'gsm8k')
  assert one.reward.function == benchmarks.BENCHMARKS['gsm8k'].reward
  assert one.data.instruction == benchmarks.BENCHMARKS['gsm8k'].instruction


def test_the_system_turn_is_part_of_the_questions(tmp_path):
  """Where none is set the digest is that of folders begun before."""
  rows = [{'prompt': 'a', 'answer': 'b'}]
  plain = override(Config(), 'reward.function=math')
  assert evaluate.digest(rows, plain) == '7b45d2068cf3e98f'
  told = override(plain, 'data.system=Be terse.')
  assert evaluate.digest(rows, told) not in (
    evaluate.digest(rows, plain),
    evaluate.digest(rows, override(plain, 'data.instruction=Be terse.')),
  )
  assert evaluate.for_one(told, [], 'svamp').data.system == 'Be terse.'
  # Settings that were kept before there was this one are as it is by default.
  old = to_dict(plain)
  old['data'].pop('system')
  kept = {'config': old, 'facts': {}}
  (tmp_path / 'settings.json').write_text(json.dumps(kept))
  generations.check_settings(tmp_path, plain, {})
  with pytest.raises(ConfigError, match=r"data\.system: '' -> 'Be terse\.'"):
    generations.check_settings(tmp_path, told, {})


def test_held_out_numbers_are_not_of_benchmarks(tmp_path):
  file = tmp_path / 'evaluation.json'
  assert evaluate.metrics_of_benchmarks(file) == {}
  file.write_text('{"eval/gsm8k/avg@1": 0.5, "eval/test/avg@4": 0.25}')
  assert evaluate.metrics_of_benchmarks(file) == {'eval/gsm8k/avg@1': 0.5}
