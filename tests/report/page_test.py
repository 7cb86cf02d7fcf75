"""The report: every number that was measured is there, nothing else is."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from gft_jax.config import Config, ConfigError, Stage, to_dict
from gft_jax.report import figures, tables
from gft_jax.report import groups as report_groups
from gft_jax.report.page import _objectives, write_report
from gft_jax.report.run import goodput, read_run

CHAIN = (
  Stage('warm', '', 'sft', 6),
  Stage('group', 'warm', 'gft', 6, ('loss.tau=0.5',)),
)
ALL = {
  'accuracy',
  'coefficients',
  'drift',
  'entropy',
  'grad_norm',
  'learning',
  'reward',
  'seconds',
}


def evaluation(stage, step, value):
  return {
    'stage': stage,
    'step': step,
    'eval/test/avg@4': value,
    'eval/test/avg@4_low': value - 0.0311,
    'eval/test/avg@4_high': value + 0.0322,
    'eval/test/pass@4': value + 0.1133,
    'eval/test/pass@4_low': value + 0.0744,
    'eval/test/pass@4_high': value + 0.1455,
    'eval/kl_to_base': value / 7,
    'eval/entropy': value / 3,
    'time/evaluate': 2.0,
  }


def training(stage, step, **values):
  numbers = {
    'train/grad_norm': 0.5 + step,
    'train/entropy': 1 / step,
    'time/update': 0.25,
  }
  rewards = {
    'train/reward_expert': 1.0,
    'train/reward_self': step / 10,
    'time/sample': 0.125,
  }
  extra = rewards if stage == 'group' else {}
  return {'stage': stage, 'step': step} | numbers | extra | values


def write_run(folder, records, stages=CHAIN):
  folder.mkdir(exist_ok=True)
  settings = to_dict(Config(stages=stages))
  (folder / 'config.json').write_text(json.dumps(settings))
  lines = [json.dumps(record) + '\n' for record in records]
  (folder / 'metrics.jsonl').write_text(''.join(lines))
  return folder


def full_run(folder):
  records = []
  for stage, value in (('warm', 0.4321), ('group', 0.7654)):
    records += [training(stage, step) for step in range(1, 4)]
    records += [evaluation(stage, 3, value - 0.2)]
    records += [training(stage, step) for step in range(4, 7)]
    records += [evaluation(stage, 6, value)]
  write_run(folder, records)
  coefficients = folder / 'report/coefficients'
  coefficients.mkdir(parents=True)
  weights = np.array([1.0, 1.2, 50.0, 1e6], np.float32)
  for stage in ('warm', 'group'):
    np.savez(
      coefficients / f'{stage}.npz',
      before=weights,
      after=np.minimum(weights, 1),
    )
  return folder


def drawn(folder):
  return {path.stem for path in (folder / 'report').glob('*.png')}


class Page(html.parser.HTMLParser):
  """Text of cells, images and headings; raises on tags that do not match."""

  VOID = ('meta', 'img', 'br')

  def __init__(self, path):
    super().__init__()
    self.open, self.cells, self.images = [], [], []
    self.texts = {}
    self.feed(path.read_text(encoding='utf-8'))
    assert not self.open

  def handle_starttag(self, tag, attrs):
    if tag == 'img':
      self.images.append(dict(attrs)['src'])
    if tag in ('td', 'th'):
      self.cells.append('')
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if {'td', 'th'} & set(self.open):
      self.cells[-1] += f' {data}'
    for tag in set(self.open):
      self.texts[tag] = self.texts.get(tag, '') + data


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = full_run(tmp_path_factory.mktemp('runs') / 'my <run>')
  return folder, write_report(folder)


def test_a_full_run_has_every_figure(run):
  folder, path = run
  assert path == folder / 'report' / 'index.html'
  assert drawn(folder) == ALL == set(figures.FIGURES)
  for name in ALL:
    png = (folder / 'report' / f'{name}.png').read_bytes()
    assert png.startswith(b'\x89PNG') and len(png) > 5000


def test_the_page_stands_alone(run):
  folder, path = run
  page = Page(path)
  assert len(page.images) == len(ALL)
  embedded = set()
  for source in page.images:
    prefix, data = source.split(',')
    assert prefix == 'data:image/svg+xml;base64'
    embedded.add(base64.b64decode(data))
  assert len(embedded) == len(ALL)
  assert all(b'</svg>' in drawing for drawing in embedded)
  assert not list((folder / 'report').glob('*.svg'))
  outside = re.findall(r'(?:src|href)="(?!data:)', path.read_text())
  assert not outside


def test_every_number_of_the_last_evaluations_is_in_the_table(run):
  cells = Page(run[1]).cells
  for stage, value in (('warm', 0.4321), ('group', 0.7654)):
    last = evaluation(stage, 6, value)
    row = ' '.join(cells[cells.index(f' {stage}') :][:5])
    for name, number in last.items():
      if name.startswith('eval/'):
        assert f'{number:.3f}' in row, name
  assert f'{0.7654 - 0.2:.3f}' not in ' '.join(cells)  # not the last
  assert [c.split() for c in cells[:5]] == [
    ['stage'],
    ['test', 'avg@4'],
    ['test', 'pass@4'],
    ['KL', 'to', 'base', 'per', 'token'],
    ['entropy', 'per', 'token'],
  ]


def test_the_table_in_the_terminal(run):
  lines = tables.table(run[0]).split('\n')
  assert [line.split() for line in lines] == [
    ['stage', 'test/avg@4', 'kl_to_base', 'entropy'],
    ['warm', '0.432', '(0.401–0.464)', '0.062', '0.144'],
    ['group', '0.765', '(0.734–0.798)', '0.109', '0.255'],
  ]
  assert tables.table({'a': {'eval/s/avg@4': 0.5}, 'b': {}}).split('\n') == [
    'stage  s/avg@4',
    'a      0.500',
    'b      –',
  ]


def test_title_tree_and_settings(run):
  page = Page(run[1])
  assert page.texts['h1'] == 'my <run>: SFT → GFT'
  assert page.texts['li'].startswith('warm SFT, 6 steps')
  assert page.texts['li'].endswith('group GFT, 6 steps, loss.tau=0.5')
  settings = json.loads(page.texts['pre'])
  assert settings == json.loads((run[0] / 'config.json').read_text())
  assert '2 of 2 stages, 12 steps, 0 min 12 s' in page.texts['p']


def sample(stage, objective, p):
  member = report_groups.Member(
    'self', 0.0, -0.87, 2, ['<script>', '$'], [p, 0.9], []
  )
  group = report_groups.Group('7+8:', '15', 1, [member])
  return report_groups.GroupSamples(objective, 6, 0.7, [group])


def write_sample(folder, stage, *args):
  path = folder / 'report/groups' / f'{stage}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(report_groups.text_of(sample(stage, *args)))


def test_groups_of_the_stages_are_on_the_page(tmp_path):
  """Unfolded is the last stage of GFT, or else the last."""
  records = [evaluation(s, 1, 0.5) for s in ('warm', 'group', 'rl')]
  stages = (*CHAIN, Stage('rl', 'group', 'grpo', 1))
  folder = write_run(tmp_path / 'run', records, stages)
  write_sample(folder, 'group', 'gft', 0.05)
  write_sample(folder, 'rl', 'grpo', 0.5)
  path = write_report(folder)
  page, text = Page(path), path.read_text()
  assert page.texts['h2'].index('Figures') < page.texts['h2'].index('Sample')
  assert 'group GFT, step 6, τ = 0.7' in page.texts['summary']
  assert 'p = 0.05, C = 0.05, A = −0.87: 1/p = 20, C/p = 1,' in text
  assert '.down5 { background: #' in text and 'class="down5"' in text
  assert '<script' not in text and page.texts['span'].count('<script>') == 4
  unfolded = re.findall(r'<details class="groups" open><summary><b>(\w+)', text)
  assert unfolded == ['group']
  assert not re.findall(r'(?:src|href)="(?!data:)', text)

  (folder / 'report/groups/group.json').write_text('{}')
  text = write_report(folder).read_text()
  assert '<b>rl</b>' in text and '<b>group</b> <small>GFT, step' not in text
  assert text.count('<details class="groups" open>') == 1


def test_a_run_without_groups_has_no_place_for_them(run):
  assert 'Sample groups' not in run[1].read_text()


def test_the_same_run_gives_the_same_bytes(run):
  before = {p: p.read_bytes() for p in (run[0] / 'report').glob('*.*')}
  write_report(run[0])
  assert {p: p.read_bytes() for p in before} == before


def test_what_was_not_measured_is_left_out(tmp_path):
  only = [{'stage': 'warm', 'step': 1, 'train/entropy': 0.5}]
  path = write_report(write_run(tmp_path / 'a', only))
  assert drawn(tmp_path / 'a') == {'entropy'}
  page = Page(path)
  assert 'No evaluation has finished' in page.texts['p']
  assert 'group GFT, 6 steps, loss.tau=0.5, not reached' in page.texts['li']

  bare = {'stage': 'warm', 'step': 1, 'eval/test/avg@4': 0.25}
  path = write_report(write_run(tmp_path / 'b', [bare]))
  assert drawn(tmp_path / 'b') == {'accuracy'}
  assert ' 0.250' in Page(path).cells


def test_a_split_that_one_stage_lacks_is_a_dash(tmp_path):
  records = [
    {'stage': 'warm', 'step': 1, 'eval/a/avg@4': 0.5},
    {'stage': 'group', 'step': 1, 'eval/b/avg@4': 0.75},
  ]
  cells = Page(write_report(write_run(tmp_path, records))).cells
  assert cells[3:] == [' warm', ' 0.500', ' –', ' group', ' –', ' 0.750']


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


def test_an_uninterrupted_run_has_one_share(tmp_path):
  records = [training('group', 1, **{'time/wall': 0.75})]
  page = Page(write_report(write_run(tmp_path, records)))
  assert 'Goodput 50.0 %: the share' in page.texts['p']
  assert 'down, no process at work' not in page.texts['tr']


def test_objectives_of_a_chain_and_of_a_tree():
  fork = (*CHAIN, Stage('other', 'warm', 'gft', 1))
  assert _objectives(CHAIN) == 'SFT → GFT'
  assert _objectives(fork) == 'SFT, GFT'
  assert _objectives(CHAIN[:1]) == 'SFT'


def test_smoothing_is_a_mean_and_keeps_constants():
  assert np.allclose(figures._smooth(np.full(100, 3.0)), 3)
  ramp = figures._smooth(np.arange(100.0))
  np.testing.assert_allclose(ramp[50], 50)
  np.testing.assert_allclose(ramp[0], np.arange(6).mean())
  assert figures._smooth(np.array([7.0])).tolist() == [7]


def test_shares_of_weights_add_to_one_at_the_edges_too():
  edges = np.array([1.0, 10.0, 100.0])
  weights = np.array([0.99, 1.0, 9.0, 10.0, 100.0, 1e9])
  assert figures._shares(weights, edges).tolist() == [0.5, 0.5]


@pytest.mark.parametrize('missing', ['config.json', 'metrics.jsonl'])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, missing):
  write_run(tmp_path, [training('warm', 1)])
  (tmp_path / missing).unlink()
  with pytest.raises(ConfigError, match='not a run') as error:
    write_report(tmp_path)
  assert missing in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'report').exists()


def test_an_empty_run_is_one_line(tmp_path):
  write_run(tmp_path, [])
  with pytest.raises(ConfigError, match='is empty: nothing to report'):
    write_report(tmp_path)
  assert not (tmp_path / 'report').exists()


def measured(name, value, **more):
  metrics = {
    'problems': 40,
    'avg@16': value,
    'avg@16_low': value - 0.1,
    'avg@16_high': value + 0.1,
    'pass@1': value,
    'pass@8': value + 0.2,
    'pass@16': value + 0.3,
    'maj@1': value,
    'maj@16': value + 0.05,
    'not_asked': 0,
  }
  return {f'eval/{name}/{k}': v for k, v in (metrics | more).items()}


def test_the_table_of_benchmarks():
  table = tables.benchmark_table(
    measured('amc23', 0.3016) | measured('math_oai', 0.4654, problems=500)
  )
  assert tables.markdown(table) == (
    '| benchmark | problems | avg@16 | 95 % interval | pass@16 | maj@16 |\n'
    '| --------- | -------: | -----: | ------------: | ------: | -----: |\n'
    '| amc23     |       40 |  30.16 |   20.16–40.16 |   60.16 |  35.16 |\n'
    '| math_oai  |      500 |  46.54 |   36.54–56.54 |   76.54 |  51.54 |\n'
    '| average   |          |  38.35 |               |   68.35 |  43.35 |\n'
  )
  assert tables.latex(table).splitlines() == [
    r'\begin{tabular}{lrrrrr}',
    r'\toprule',
    r'benchmark & problems & avg@16 & 95 \% interval & pass@16 & maj@16 \\',
    r'\midrule',
    r'amc23 & 40 & 30.16 & 20.16--40.16 & 60.16 & 35.16 \\',
    r'math\_oai & 500 & 46.54 & 36.54--56.54 & 76.54 & 51.54 \\',
    r'\midrule',
    r'average &  & 38.35 &  & 68.35 & 43.35 \\',
    r'\bottomrule',
    r'\end{tabular}',
  ]


def test_one_sample_has_no_column_for_pass_and_vote():
  names = ('avg@1', 'avg@1_low', 'avg@1_high', 'pass@1', 'maj@1')
  metrics = {f'eval/svamp/{name}': 0.5 for name in names}
  table = tables.benchmark_table(metrics)
  assert table.head == ['benchmark', 'problems', 'avg@1', '95 % interval']
  assert table.body == [['svamp', '–', '50.00', '50.00–50.00']]


def test_the_table_of_a_comparison():
  row = {
    'problems': 1000,
    'before': 0.8636,
    'after': 0.7873,
    'difference': -0.0763,
    'difference_low': -0.09,
    'difference_high': 0.01,
    'gained': 31,
    'lost': 107,
  }
  table = tables.comparison_table(
    {'svamp': row, 'mawps': row | {'before': 0.9, 'after': 0.9999}}
  )
  assert table.body[0] == [
    *('svamp', '1000', '86.36', '78.73', '−7.63', '−9.00 to +1.00'),
    *('31', '107'),
  ]
  assert table.foot[:5] == ['average', '', '88.18', '89.36', '−7.63']
  assert '$-$7.63 & $-$9.00 to +1.00 & 31' in tables.latex(table)
