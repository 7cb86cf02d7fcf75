"""The figures and tables of a reproduction, from records that are made up."""

import itertools
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from gft_jax.config import for_stage, to_dict

# As for a script that is run from there.
ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / 'experiments'))

import reproduce  # noqa: E402
from figures import results, summary, verdicts  # noqa: E402

SCALE = reproduce.SCALES['embedded']
SEEDS = (0, 1, 2)
NAMES = [module.__name__.rpartition('.')[2] for module in summary.ITEMS]


def arms_of(scale):
  """Name of an arm -> its settings."""
  runs = reproduce.plan(pathlib.Path('w'), scale, 3, [])
  return {
    stage.name: for_stage(run.config, stage)
    for run in runs
    for stage in run.config.stages
  }


def test_arms_are_the_recipes_with_their_budget():
  stages = [s for f in reproduce.families(SCALE).values() for s in f]
  arms = arms_of(SCALE)
  assert len(arms) == len(stages) + 1, 'names are unique over families'
  assert {arm.seed for arm in arms.values()} == {3}
  assert arms['sft'].data.batch_size == 160
  assert arms['sft_mix'].data.batch_size == 40
  assert arms['gft'].data.batch_size == arms['group_8_0'].data.batch_size == 16
  for name, arm in arms.items():
    if name.startswith('group_'):
      assert arm.group.size == 8, name
    assert arm.model.path == ('' if name == 'base' else 'w/base/model')
  assert arms['group_8_0'].group.samples == 0
  assert arms['group_0_8'].group.experts == 0
  assert arms['tau_0.9'].loss.tau == 0.9
  for style in ('verbose', 'hesitant', 'repeating', 'guessing'):
    assert arms[f'{style}_sft'].data.path == f'arithmetic/{style}'
    assert arms[f'{style}_sft'].data.max_response == 40
    assert arms[f'{style}_sft'].data.batch_size == 160
  assert arms['hesitant_tau_0.1'].loss.tau == 0.1
  assert arms['hesitant_tau_0.1'].data == arms['hesitant_gft_no_gal'].data
  assert arms['unclipped_no_dcr'].optimizer.clip_norm == 0
  assert arms['unclipped'].optimizer.learning_rate == 1e-4
  assert arms['fast_no_dcr'].optimizer.learning_rate == 1e-3
  assert arms['fast'].optimizer.clip_norm == arms['gft'].optimizer.clip_norm > 0
  objectives = {stage.name: stage.objective for stage in stages}
  assert objectives['group_6_2_no_dcr'] == 'gft_no_dcr'
  assert objectives['updates'] == 'gft'
  assert objectives['hesitant_gft_no_gal'] == 'gft_no_gal'
  assert objectives['hesitant_tau_0.9'] == 'gft_no_gal'
  assert {s.name: s.start for s in stages if s.start} == {
    'grpo_2': 'grpo',
    'grpo_3': 'grpo_2',
    'sft_2': 'sft',
    'sft_grpo': 'sft',
    'sft_grpo_2': 'sft_grpo',
    'sft_gft': 'sft',
    'gft_grpo': 'gft',
    'sft_gft_grpo': 'sft_gft',
    'verbose_sft_grpo': 'verbose_sft',
  }
  assert arms['updates'].optimizer.mini_batches == 4


def test_an_answer_hesitates_that_writes_more_numbers_than_steps():
  for text, hesitates in (
    ('15,12,17#17', False),
    ('7+8=15,15-3=12,12+5=17#17', False),
    ('7+8=15;15+5=20;20-3=17#17', False),
    ('p20n3#17', False),
    ('#17', False),
    ('25:15,12,17#17', True),
    ('15,12,17:17#17', True),
    ('25,15,12,17#17', True),
  ):
    assert reproduce.hesitating(['7+8-3+5:'], [[text]]) == hesitates, text
  assert reproduce.hesitating(['7+8:', '1+2:'], [['15#15'], ['3,3#3']]) == 0.5


def test_a_larger_scale_has_another_decoder_alone():
  scale = reproduce.SCALES['small']
  arms = arms_of(scale)
  assert arms['base'].model.architecture == scale.architecture
  assert arms['gft'].data.batch_size == 16
  assert arms['sft'].data.batch_size == 160


def test_what_a_reproduction_decides_cannot_be_set(tmp_path, capsys):
  for setting in ('data.batch_size=4', 'seed=1', 'model.architecture.width=8'):
    arguments = ['--workdir', str(tmp_path), '--set', setting]
    assert reproduce.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert f'{setting.partition("=")[0]} is decided' in error
  assert not list(tmp_path.iterdir())
  (base, *_) = reproduce.plan(tmp_path, SCALE, 0, ['eval.prompts=8'])
  assert base.config.eval.prompts == 8


@pytest.mark.parametrize(
  'margins, verdict',
  [
    ((0.1, 0.11, 0.12), 'reproduces'),
    ((-0.1, -0.11, -0.12), 'does not reproduce'),
    ((0.1, -0.1, 0.02), 'cannot be seen at this scale'),
    ((0.0, 0.0, 0.0), 'cannot be seen at this scale'),
    ((0.1,), 'cannot be seen (one seed)'),
    ((0.1, float('nan'), 0.1), 'diverged'),
  ],
)
def test_a_verdict_needs_an_interval_without_zero(margins, verdict):
  assert verdicts.Claim('', margins).verdict() == verdict


def test_the_sentence_has_the_paired_interval():
  sentence = verdicts.Claim('A above B', (0.1, 0.2, 0.3)).sentence()
  # t(0.975, 2) = 4.303 times 0.1 / sqrt(3).
  verdict = '**cannot be seen at this scale**'
  assert sentence == f'A above B: {verdict} (+0.200 ± 0.248)'


# Each has a level of its own, so that a claim about another pair shows.
OTHERS = (
  *('gft_no_dcr', 'gft_no_gal', 'group_2_6', 'group_6_2', 'group_6_2_no_dcr'),
  *('hesitant_gft_no_gal', 'hesitant_sft', 'guessing_gft_no_gal'),
  *('guessing_sft', 'verbose_gft', 'verbose_sft', 'sft_gft', 'sft_2'),
  *('sft_gft_grpo', 'sft_grpo_2', 'grpo_3'),
)
PAIRS = {
  'GFT above GFT without DCR, in distribution': ('gft', 'gft_no_dcr'),
  'without DCR above without GAL, in distribution': (
    *('gft_no_dcr', 'gft_no_gal'),
  ),
  '2:6 above 6:2': ('group_2_6', 'group_6_2'),
  '2:6 above 4:4': ('group_2_6', 'gft'),
  'GFT above SFT, verbose expert': ('verbose_gft', 'verbose_sft'),
  'SFT → GFT above SFT of as many steps, in distribution': (
    *('sft_gft', 'sft_2'),
  ),
  'SFT → GFT → GRPO above SFT → GRPO of as many steps, in distribution': (
    *('sft_gft_grpo', 'sft_grpo_2'),
  ),
  'SFT → GFT → GRPO above GRPO of as many steps, longer chains': (
    *('sft_gft_grpo', 'grpo_3'),
  ),
  'DCR raises accuracy, 6:2, demonstrations prevail': (
    *('group_6_2', 'group_6_2_no_dcr'),
  ),
  'DCR raises accuracy, imitation of the hesitant expert': (
    *('hesitant_gft_no_gal', 'hesitant_sft'),
  ),
  'DCR raises accuracy, the same, its errors alone': (
    *('guessing_gft_no_gal', 'guessing_sft'),
  ),
}


def level(arm: str, seed: int) -> float:
  """Accuracy of an arm; GFT is the best, GRPO after SFT is bad."""
  levels = {'gft': 0.8, 'grpo': 0.7, 'sft_grpo': 0.3, 'base': 0.4}
  levels |= {arm: 0.5 + 0.01 * i for i, arm in enumerate(OTHERS)}
  noise = {'tau_0.5': 0.3 * (seed - 1), 'tau_0.9': 0.4}
  return levels.get(arm, 0.5) + noise.get(arm, 0) + 0.01 * seed


def record(arm, seed, step, last):
  value = level('base', seed) + step / last * (
    level(arm, seed) - level('base', seed)
  )
  return {
    'stage': arm,
    'step': step,
    **{f'eval/{s}/avg@4': value for s in results.SPLITS},
    **{f'eval/{s}/avg@4_low': value - 0.1 for s in results.SPLITS},
    results.KL: {'base': 0.0, 'sft': 0.5}.get(arm, 0.05) * step / last,
    results.ENTROPY: 0.3,
  }


ENVIRONMENT = {'machine': '<2 cores>', 'software': 'jax', 'commit': 'abc'}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Runs of every family, as train leaves them."""
  root = tmp_path_factory.mktemp('reproduction')
  for seed in SEEDS:
    for run in reproduce.plan(root / str(seed), SCALE, seed, []):
      (run.folder / 'report' / 'coefficients').mkdir(parents=True)
      text = json.dumps(to_dict(run.config))
      (run.folder / 'config.json').write_text(text)
      done = {'done': True, 'environments': [ENVIRONMENT]}
      reproduce.keep(run.folder, done)
      records = []
      for stage in run.config.stages:
        records += [
          {
            'stage': stage.name,
            'step': step,
            'train/grad_norm': 1.0 + step % 2,
            'train/rectified_fraction': 0.4,
          }
          for step in (16, 32, 48, 64, 80)
        ]
        records += [
          record(stage.name, seed, step, 80) for step in (16, 32, 48, 64, 80)
        ]
      lines = [json.dumps(r) for r in records]
      (run.folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    np.savez(
      root / str(seed) / 'base' / 'report' / 'coefficients' / 'base.npz',
      before=np.array([1.1, 2.0, 100.0]),
      after=np.array([1.1, 1.0, 1.0]),
    )
    answers = root / str(seed) / 'answers'
    answers.mkdir()
    arms = ('base', *itertools.chain(*reproduce.PASSES.values()))
    for arm in arms:
      values = {
        f'eval/{split}/pass@{k}{end}': 0.5
        for split in ('test', 'ood_length')
        for k in (1, 16, 128)
        for end in ('', '_low')
      } | {'hesitates': 0.25, 'seconds': 60.0}
      (answers / f'{arm}.json').write_text(json.dumps(values))
  return root


def draw(workdir, out, *more):
  arguments = ['--workdir', str(workdir), '--draw', '--out', str(out)]
  return reproduce.main([*arguments, *more])


def test_the_summary_has_every_item_and_its_numbers(workdir, tmp_path):
  assert draw(workdir, tmp_path) == 0
  page = (tmp_path / 'README.md').read_text()
  found = json.loads((tmp_path / 'results.json').read_text())
  items = found['items']
  assert list(items) == NAMES
  for name in NAMES:
    drawn = (tmp_path / f'{name}.png').exists()
    assert not (tmp_path / f'{name}.svg').exists()
    assert drawn == (name == 'regimes' or name.startswith('figure')), name
    assert drawn == (f'({name}.png)' in page)
    if drawn:
      assert (tmp_path / f'{name}.png').stat().st_size > 1000
  claims = {c['claim']: c for item in items.values() for c in item['claims']}
  below = claims['SFT → GRPO ends below GRPO, in distribution']
  assert below['verdict'] == 'reproduces'
  assert below['margins by seed'] == pytest.approx([0.4] * 3)
  for text, (better, worse) in PAIRS.items():
    margin = level(better, 0) - level(worse, 0)
    assert claims[text]['margins by seed'] == pytest.approx([margin] * 3), text
  drift = claims['SFT drifts farther than GFT']
  assert drift['margins by seed'] == pytest.approx([0.45] * 3)
  noisy = claims['τ = 0.7 above τ = 0.5, in distribution']
  assert noisy['verdict'] == 'cannot be seen at this scale'
  assert noisy['margins by seed'] == pytest.approx([0.6, 0.3, 0.0])
  against = claims['τ = 0.7 above τ = 0.9, in distribution']
  assert against['verdict'] == 'does not reproduce'
  assert '| Figure 1: what SFT and GRPO change, and GRPO after SFT | ' in page
  # Claims of the paper alone are counted: 4 of Table 3's 8.
  (counts,) = re.findall(r'\| Table 3: forgetting \| (.*) \|', page)
  assert sum(map(int, counts.split(' | '))) == 4
  table = {row[0]: row[1:] for row in items['table_1']['table']}
  assert table['GFT'][0] == '0.810 ± 0.025'
  assert table['GFT'][-2:] == ['46.09', '70.50']
  assert table['DFT'][-2:] == ['36.40', '64.35']
  weights = items['figure_2']['table']
  assert [cell.split(' ')[0] for cell in weights[1][1:]] == [
    *('2.000', '98.040', '100.000', '0.667', '0.333')
  ]
  assert [cell.split(' ')[0] for cell in weights[2][1:]] == [
    *('1.000', '1.098', '1.100', '0.000', '0.000')
  ]
  regimes = {row[0]: row[1:] for row in items['regimes']['table']}
  assert regimes['imitation of the hesitant expert: with'][-1].startswith(
    '0.25'
  )
  assert regimes['6:2, demonstrations prevail: with'][-1] == '–'
  about = found['about']
  assert about['commit'] == 'abc' and about['seeds'] == '0, 1, 2'
  # Answers of 13 arms in 3 seeds, a minute each; the runs have no wall time.
  assert about['minutes'] == '39'


def test_the_same_records_give_the_same_bytes(workdir, tmp_path):
  for name in 'ab':
    assert draw(workdir, tmp_path / name, '--svg') == 0
  drawn = sorted((tmp_path / 'a').iterdir())
  assert len(drawn) == 7 * 2 + 3
  for path in drawn:
    assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()


def test_one_seed_has_no_interval(workdir, tmp_path):
  assert draw(workdir, tmp_path, '--seeds', '1', '1') == 0
  found = json.loads((tmp_path / 'results.json').read_text())
  assert found['about']['seeds'] == '1'
  verdicts = {
    claim['verdict']
    for item in found['items'].values()
    for claim in item['claims']
  }
  assert verdicts == {'cannot be seen (one seed)'}


def test_an_arm_that_diverged_is_told(workdir, tmp_path):
  records = workdir / '1' / 'fast' / 'metrics.jsonl'
  whole = records.read_text()
  records.write_text('\n'.join(whole.splitlines()[:3]) + '\n')
  try:
    assert draw(workdir, tmp_path) == 0
  finally:
    records.write_text(whole)
  page = (tmp_path / 'README.md').read_text()
  name = 'DCR raises accuracy, 10 x learning rate'
  assert f'{name}: **diverged**' in page


@pytest.mark.parametrize('seeds', [('7',), ('0', '7')])
def test_what_is_not_done_is_not_drawn(workdir, tmp_path, capsys, seeds):
  assert draw(workdir, tmp_path / 'out', '--seeds', *seeds) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and '7/base is not finished' in error
  assert not (tmp_path / 'out').exists()


def test_another_scale_is_refused(workdir, tmp_path, capsys):
  assert draw(workdir, tmp_path / 'out', '--scale', 'small') == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'model.architecture' in error


def test_the_page_opens_alone_and_escapes(workdir, tmp_path):
  assert draw(workdir, tmp_path) == 0
  page = (tmp_path / 'index.html').read_text()
  assert page.count('data:image/svg+xml;base64') == 7
  assert '<script' not in page and 'src="http' not in page
  assert '&lt;2 cores&gt;' in page and '<2 cores>' not in page


def test_every_item_is_a_row_of_the_readme():
  text = (ROOT / 'experiments' / 'README.md').read_text()
  for name in NAMES:
    assert f'`figures/{name}.py`' in text, name


def test_the_committed_summary_is_what_the_code_draws(workdir, tmp_path):
  assert draw(workdir, tmp_path) == 0
  drawn = json.loads((tmp_path / 'results.json').read_text())['items']
  folder = ROOT / 'experiments' / 'reproduction'
  found = json.loads((folder / 'results.json').read_text())
  assert list(found['items']) == NAMES
  assert len(found['about']['seeds'].split(', ')) >= 3
  page = (folder / 'README.md').read_text()
  for name, item in found['items'].items():
    assert f'## {item["title"]}' in page
    assert item['table'][0] == drawn[name]['table'][0] or name == 'table_4'
    for part in (
      lambda item: [row[0] for row in item['table']],
      lambda item: [(c['claim'], c['of the paper']) for c in item['claims']],
    ):
      assert part(item) == part(drawn[name]), name
    for claim in item['claims']:
      assert f'{claim["claim"]}: **{claim["verdict"]}** (' in page
      again = verdicts.Claim(
        '', claim['margins by seed'], claim['of the paper']
      )
      assert again.verdict() == claim['verdict']


# First words of a row of the README -> cells of the committed summary.
ROWS = {
  'SFT → GRPO ends below': [('figure_4', 'SFT → GRPO'), ('figure_4', 'GRPO')],
  'KL from base': [('figure_5', arm) for arm in ('SFT', 'GFT', 'GRPO')],
  'a GFT stage mends': [
    *(
      ('figure_4', 'SFT → GFT → GRPO'),
      ('figure_4', 'SFT → GRPO, three phases'),
    ),
  ],
  'group advantages matter': [('table_2', 'GFT'), ('table_2', 'without GAL')],
  'dynamic coefficients matter': [
    *(('table_2', 'GFT'), ('table_2', 'without DCR')),
  ],
  'the same where an expert': [
    ('regimes', f'imitation of the hesitant expert: {arm}')
    for arm in ('with', 'without')
  ],
}


def test_the_readme_says_what_the_summary_says():
  folder = ROOT / 'experiments' / 'reproduction'
  items = json.loads((folder / 'results.json').read_text())['items']
  lines = (ROOT / 'README.md').read_text().splitlines()
  for words, cells in ROWS.items():
    (line,) = (x for x in lines if x.startswith(f'| {words}'))
    said = re.findall(r'\b0\.\d+', line.split('|')[2])
    column = -1 if words == 'KL from base' else 1
    found = [
      row[column].split(' ')[0]
      for item, arm in cells
      for row in items[item]['table']
      if row[0] == arm
    ]
    assert len(said) == len(found) == len(cells), words
    for a, b in zip(said, found):
      assert abs(float(a) - float(b)) <= 0.0051, (words, a, b)


@pytest.mark.slow
def test_a_small_reproduction_runs_and_goes_on(tmp_path, monkeypatch):
  """Real runs of a few arms; the second call trains nothing and draws again."""
  scale = SCALE._replace(base_steps=20, steps=5, answers=4)
  few = {
    'methods': tuple(
      stage
      for stage in reproduce.families(scale)['methods']
      if stage.name in ('sft', 'gft', 'grpo')
    )
  }
  monkeypatch.setitem(reproduce.SCALES, 'embedded', scale)
  monkeypatch.setattr(reproduce, 'families', lambda scale: few)
  monkeypatch.setattr(reproduce, 'PASSES', {'methods': ('gft',)})
  items = (summary.figure_2, summary.figure_5, summary.table_3)
  monkeypatch.setattr(summary, 'ITEMS', items)
  arguments = ['--workdir', str(tmp_path), '--seeds', '3', '--set']
  arguments += ['eval.prompts=8', 'eval.kl_prompts=8', 'eval.batch_size=8']

  def killed(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(reproduce, 'answer', killed)
    assert reproduce.main(arguments) != 0
  assert reproduce.state_of(tmp_path / '3' / 'base')['done']
  assert not reproduce.state_of(tmp_path / '3' / 'methods')['done']
  assert reproduce.main(arguments) == 0
  out = tmp_path / 'summary'
  before = (out / 'results.json').read_bytes()
  records = (tmp_path / '3' / 'methods' / 'metrics.jsonl').read_bytes()
  page = (out / 'index.html').read_text()
  assert 'What each method does to an answer' in page
  for arm in ('base', 'gft'):
    answers = json.loads((tmp_path / f'3/answers/{arm}.json').read_text())
    assert 0 <= answers['eval/ood_length/pass@4'] <= 1
    assert 0 <= answers['hesitates'] <= 1
  assert reproduce.main(arguments) == 0
  assert (out / 'results.json').read_bytes() == before
  after = (tmp_path / '3' / 'methods' / 'metrics.jsonl').read_bytes()
  assert after == records
  found = json.loads(before)['items']
  assert [row[0] for row in found['table_3']['table'][1:]] == [
    *('base', 'SFT', 'GRPO', 'GFT')
  ]
