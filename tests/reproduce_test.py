"""The figures and tables of a reproduction, from records that are made up."""

import json
import pathlib
import sys

import numpy as np
import pytest

from gft_jax.config import for_stage, to_dict

# As for a script that is run from there.
ROOT = pathlib.Path(__file__).parent.parent
sys.path.append(str(ROOT / 'experiments'))

import figures  # noqa: E402
import reproduce  # noqa: E402
from figures import results  # noqa: E402

SCALE = reproduce.SCALES['embedded']
SEEDS = (0, 1, 2)


def stages():
  return [s for family in reproduce.families(SCALE).values() for s in family]


def test_arms_are_the_recipes_with_their_budget():
  base = reproduce.base_config(SCALE, 3, [])
  arms = {stage.name: for_stage(base, stage) for stage in stages()}
  assert len(arms) == len(stages()), 'names are unique over families'
  assert base.seed == 3
  assert arms['sft'].data.batch_size == 160
  assert arms['sft_mix'].data.batch_size == 40
  assert arms['gft'].data.batch_size == arms['group_8_0'].data.batch_size == 16
  for name, arm in arms.items():
    if name.startswith('group_'):
      assert arm.group.size == 8, name
  assert arms['group_8_0'].group.samples == 0
  assert arms['group_0_8'].group.experts == 0
  assert arms['tau_0.9'].loss.tau == 0.9
  assert arms['verbose_sft'].data.path == 'arithmetic/verbose'
  assert arms['hot_no_dcr'].optimizer.clip_norm == 0
  objectives = {stage.name: stage.objective for stage in stages()}
  assert objectives['group_6_2_no_dcr'] == 'gft_no_dcr'
  assert objectives['updates'] == 'gft'


def test_a_larger_scale_keeps_the_ratios():
  scale = reproduce.SCALES['small']
  base = reproduce.base_config(scale, 0, [])
  arms = {
    stage.name: for_stage(base, stage)
    for family in reproduce.families(scale).values()
    for stage in family
  }
  assert base.model.architecture == scale.architecture
  assert arms['gft'].data.batch_size == scale.prompts
  assert arms['sft'].data.batch_size == 10 * scale.prompts


@pytest.mark.parametrize(
  'margins, verdict',
  [
    ((0.1, 0.11, 0.12), 'reproduces'),
    ((-0.1, -0.11, -0.12), 'does not reproduce'),
    ((0.1, -0.1, 0.02), 'cannot be seen at this scale'),
    ((0.0, 0.0, 0.0), 'cannot be seen at this scale'),
    ((0.1,), 'cannot be seen (one seed)'),
  ],
)
def test_a_verdict_needs_an_interval_without_zero(margins, verdict):
  assert results.Claim('', margins).verdict() == verdict


def test_the_sentence_has_the_paired_interval():
  sentence = results.Claim('A above B', (0.1, 0.2, 0.3)).sentence()
  # t(0.975, 2) = 4.303 times 0.1 / sqrt(3).
  verdict = '**cannot be seen at this scale**'
  assert sentence == f'A above B: {verdict} (+0.200 ± 0.248)'


def level(arm: str, seed: int) -> float:
  """Accuracy of an arm; GFT is the best, GRPO after SFT is bad."""
  levels = {'gft': 0.8, 'grpo': 0.7, 'sft_grpo': 0.3, 'base': 0.4}
  return levels.get(arm, 0.5) + 0.01 * seed


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


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Runs of every family, as train leaves them."""
  root = tmp_path_factory.mktemp('reproduction')
  for seed in SEEDS:
    base = reproduce.base_config(SCALE, seed, [])
    runs = {'base': base.stages, **reproduce.families(SCALE)}
    for family, members in runs.items():
      folder = root / str(seed) / family
      (folder / 'report' / 'coefficients').mkdir(parents=True)
      config = (
        base
        if family == 'base'
        else reproduce.family_config(base, 'nowhere', members)
      )
      (folder / 'config.json').write_text(json.dumps(to_dict(config)))
      records = []
      for stage in members:
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
      (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    np.savez(
      root / str(seed) / 'base' / 'report' / 'coefficients' / 'base.npz',
      before=np.array([1.1, 2.0, 100.0]),
      after=np.array([1.1, 1.0, 1.0]),
    )
    answers = root / str(seed) / 'answers'
    answers.mkdir()
    for arm in ('base', *reproduce.PASSES):
      values = {
        f'eval/{split}/pass@{k}{end}': 0.5
        for split in ('test', 'ood_length')
        for k in (1, 256)
        for end in ('', '_low')
      }
      (answers / f'{arm}.json').write_text(json.dumps(values))
  return root


def test_the_summary_has_every_item_and_its_numbers(workdir, tmp_path, capsys):
  arguments = ['--workdir', str(workdir), '--draw', '--out', str(tmp_path)]
  assert reproduce.main(arguments) == 0
  page = (tmp_path / 'README.md').read_text()
  for name in figures.ITEMS:
    assert f'{name}.png' in page or not name.startswith('figure'), name
  assert 'GFT → GRPO' in page
  found = json.loads((tmp_path / 'results.json').read_text())
  items = found['items']
  assert list(items) == list(figures.ITEMS)
  claims = {c['claim']: c for item in items.values() for c in item['claims']}
  below = claims['SFT → GRPO ends below GRPO, in distribution']
  assert below['verdict'] == 'reproduces'
  assert below['margins by seed'] == pytest.approx([0.4] * 3)
  drift = claims['SFT drifts farther than GFT']
  assert drift['margins by seed'] == pytest.approx([0.45] * 3)
  table = dict((row[0], row[1:]) for row in items['table_1']['table'])
  assert table['GFT'][0] == '0.810 ± 0.025'
  assert table['GFT'][-2:] == ['46.09', '70.50']
  weights = items['figure_2']['table']
  assert weights[1][1:] == ['2', '98', '100', '0.667']
  assert weights[2][1:] == ['1', '1.1', '1.1', '0']
  for name in figures.ITEMS:
    if name.startswith('figure'):
      assert (tmp_path / f'{name}.svg').stat().st_size > 1000
      assert (tmp_path / f'{name}.png').stat().st_size > 1000


def test_the_same_records_give_the_same_bytes(workdir, tmp_path):
  for name in 'ab':
    out = str(tmp_path / name)
    assert (
      reproduce.main(['--workdir', str(workdir), '--draw', '--out', out]) == 0
    )
  for path in (tmp_path / 'a').glob('*.svg'):
    assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()


def test_one_seed_has_no_interval(workdir, tmp_path):
  arguments = ['--workdir', str(workdir), '--draw', '--seeds', '1']
  assert reproduce.main([*arguments, '--out', str(tmp_path)]) == 0
  found = json.loads((tmp_path / 'results.json').read_text())
  verdicts = {
    claim['verdict']
    for item in found['items'].values()
    for claim in item['claims']
  }
  assert verdicts == {'cannot be seen (one seed)'}


def test_a_reproduction_that_is_not_there_is_one_line(tmp_path, capsys):
  assert reproduce.main(['--workdir', str(tmp_path), '--draw']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'not a run' in error


def test_the_page_opens_alone_and_escapes(workdir, tmp_path):
  arguments = ['--workdir', str(workdir), '--draw', '--out', str(tmp_path)]
  assert reproduce.main(arguments) == 0
  page = (tmp_path / 'index.html').read_text()
  assert page.count('data:image/svg+xml;base64') == 7
  assert '<script' not in page and 'src="http' not in page
  assert 'GFT &lt;' not in page and '± is a 95 % interval' in page


def test_every_item_is_a_row_of_the_readme():
  text = (ROOT / 'experiments' / 'README.md').read_text()
  for name in figures.ITEMS:
    assert f'`figures/{name}.py`' in text, name


def test_the_committed_summary_has_every_item():
  folder = ROOT / 'experiments' / 'reproduction'
  found = json.loads((folder / 'results.json').read_text())
  assert list(found['items']) == list(figures.ITEMS)
  assert len(found['about']['seeds'].split(', ')) >= 3
  page = (folder / 'README.md').read_text()
  for item in found['items'].values():
    assert f'## {item["title"]}' in page
    for claim in item['claims']:
      assert f'{claim["claim"]}: **{claim["verdict"]}** (' in page
      verdict = results.Claim('', claim['margins by seed']).verdict()
      assert verdict == claim['verdict']


@pytest.mark.slow
def test_a_small_reproduction_runs_and_goes_on(tmp_path, monkeypatch):
  """Real runs of a few arms; the second call trains nothing and draws again."""
  scale = reproduce.SCALES['embedded']._replace(
    base_steps=20, steps=5, prompts=4, answers=4
  )
  few = {
    'methods': tuple(
      stage
      for stage in reproduce.families(scale)['methods']
      if stage.name in ('sft', 'gft', 'grpo')
    )
  }
  monkeypatch.setitem(reproduce.SCALES, 'embedded', scale)
  monkeypatch.setattr(reproduce, 'families', lambda scale: few)
  monkeypatch.setattr(reproduce, 'PASSES', ('gft',))
  monkeypatch.setattr(figures, 'ITEMS', ('figure_2', 'figure_5', 'table_3'))
  arguments = ['--workdir', str(tmp_path), '--seeds', '3', '--set']
  arguments += ['eval.prompts=8', 'eval.kl_prompts=8']
  assert reproduce.main(arguments) == 0
  summary = tmp_path / 'summary'
  before = (summary / 'results.json').read_bytes()
  records = (tmp_path / '3' / 'methods' / 'metrics.jsonl').read_bytes()
  page = (summary / 'index.html').read_text()
  assert 'What each method does to an answer' in page
  for arm in ('base', 'gft'):
    answers = json.loads((tmp_path / f'3/answers/{arm}.json').read_text())
    assert 0 <= answers['eval/ood_length/pass@4'] <= 1
  assert reproduce.main(arguments) == 0
  assert (summary / 'results.json').read_bytes() == before
  after = (tmp_path / '3' / 'methods' / 'metrics.jsonl').read_bytes()
  assert after == records
  found = json.loads(before)['items']
  assert [row[0] for row in found['table_3']['table'][1:]] == [
    *('base', 'SFT', 'GRPO', 'GFT')
  ]
