"""The report: every number that was measured is there, nothing else is."""

import base64
import json
import re

import pytest
from recorded_runs import CHAIN, evaluation, full_run, training, write_run
from report_pages import Page, drawn

from gft_jax.config import ConfigError, Stage
from gft_jax.report import figures
from gft_jax.report import groups as report_groups
from gft_jax.report.page import _objectives, write_report

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


@pytest.mark.parametrize('missing', ['config.json', 'metrics.jsonl'])
def test_a_folder_that_is_no_run_is_refused(tmp_path, missing):
  write_run(tmp_path, [training('warm', 1)])
  (tmp_path / missing).unlink()
  with pytest.raises(ConfigError, match='not a run') as error:
    write_report(tmp_path)
  assert missing in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'report').exists()


def test_an_empty_run_is_refused(tmp_path):
  write_run(tmp_path, [])
  with pytest.raises(ConfigError, match='is empty: nothing to report'):
    write_report(tmp_path)
  assert not (tmp_path / 'report').exists()
