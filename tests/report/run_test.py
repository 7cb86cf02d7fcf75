import json
import pathlib

import pytest
from recorded_runs import full_run, write_run
from report_pages import Page, drawn

from gft_jax.report.page import write_report
from gft_jax.report.run import goodput, read_run, restated

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def without_threshold(name, mean, passed):
  """What a run wrote in which avg@n was the mean reward."""
  heads = {f'eval/{name}/avg@4': mean, f'eval/{name}/pass@1': passed}
  ends = {'': 0.0, '_low': -0.1, '_high': 0.1}
  return {h + end: v + d for h, v in heads.items() for end, d in ends.items()}


def test_partial_credit_of_an_earlier_version_gets_its_names(tmp_path):
  """pass@1 is the accuracy, whatever avg@n was."""
  old = without_threshold('test', 0.6, 0.25) | without_threshold('ood', 0.5, 0)
  record = {'stage': 'warm', 'step': 1} | old
  (found,) = read_run(write_run(tmp_path, [record])).records['warm']
  for name, mean, right in (('test', 0.6, 0.25), ('ood', 0.5, 0)):
    for end, add in (('', 0), ('_low', -0.1), ('_high', 0.1)):
      assert found[f'eval/{name}/avg@4{end}'] == right + add
      assert found[f'eval/{name}/mean_reward{end}'] == mean + add
  assert restated(found) == found


@pytest.mark.parametrize(
  'record',
  [
    without_threshold('test', 0.25, 0.25 + 1e-6),
    without_threshold('test', 0.6, 0.25) | {'eval/test/mean_reward': 0.6},
    {'eval/test/avg@4': 0.5, 'eval/other/pass@1': 0.2, 'train/loss': 1.0},
    {'eval/test/avg@4_low': 0.5, 'eval/test/pass@1': 0.2},
  ],
)
def test_other_records_stay_as_they_are(record):
  assert restated(record) == record


def test_rewards_of_0_and_1_read_the_same_before_and_after():
  """The embedded task, of commit bf59033."""
  records = json.loads((GOLDEN / 'run_bf59033.json').read_text())
  assert any('eval/test/avg@2' in record for record in records)
  assert [restated(record) for record in records] == records


def test_a_page_says_what_is_right(tmp_path):
  folder = full_run(tmp_path / 'run')
  assert 'share of answers' not in Page(write_report(folder)).texts['p']
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  more = {'eval/test/threshold': 0.5, 'eval/test/mean_reward': 0.9}
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(json.loads(line) | more) + '\n' for line in lines)
  )
  page = Page(write_report(folder))
  assert 'answers with a reward of 0.5 or more' in page.texts['small']
  assert 'mean reward' in ' '.join(page.cells) + page.texts.get('th', '')


def test_where_the_time_of_an_interrupted_run_went(tmp_path):
  """200 s, 50 of them in steps that count, half of the others without work."""
  first = {'time/start': 10.0, 'time/compile': 20.0, 'memory/programs': 7}
  back = {
    'time/lost': 12.0,
    'time/down': 75.0,
    'time/save': 1.0,
    'memory/programs': 2,
    'memory/programs_cached': 2,
  }
  step = {'time/data': 1.0, 'time/reward': 2.0, 'time/update': 3.0}
  records = [
    {'stage': 'warm', 'step': 1, 'time/wall': 55.0} | step | first,
    {'stage': 'group', 'step': 1, 'time/wall': 160.0} | step | back,
    {'stage': 'group', 'step': 2, 'time/wall': 190.0, 'time/sample': 40.0},
    {'stage': 'group', 'step': 2, 'time/wall': 200.0, 'time/evaluate': 9.0},
  ]
  folder = write_run(tmp_path, records)
  assert goodput(read_run(folder)) == {
    'sample': 40.0,
    'reward': 4.0,
    'update': 6.0,
    'data': 2.0,
    'compile': 20.0,
    'evaluate': 9.0,
    'save': 1.0,
    'start': 10.0,
    'lost': 12.0,
    'down': 75.0,
    'other': 21.0,
  }
  page = Page(write_report(folder))
  assert drawn(folder) == {'seconds'}
  assert (
    'Goodput 25.0 % (40.0 % while a process was at work)' in page.texts['p']
  )
  assert '9 programs were\ncompiled, 2 of which the cache' in page.texts['p']
  rows = [cells.strip() for cells in page.cells[-33:]]
  assert rows[:3] == ['rollouts', '40.0', '20.0 %']
  assert ['down, no process at work', '75.0', '37.5 %'] == rows[-6:-3]
  assert rows[-3:] == ['other', '21.0', '10.5 %']
  # Neither a stamp nor the night between two processes is a phase.
  assert '0 min 104 s' not in page.texts['p']
  assert '1 min 44 s measured' in page.texts['p']
