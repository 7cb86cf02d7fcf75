"""The scripts as a user calls them, and the recipes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from gft_jax import batch as batch_lib
from gft_jax import config as config_lib
from gft_jax import objectives, train_step
from gft_jax.models import presets
from gft_jax.models.transformer import Transformer
from gft_jax.optimizer import make_optimizer

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'experiments' / 'configs').glob('*.py'))


@pytest.fixture
def scripts(monkeypatch):
  """Imports a script of experiments/ by name, as if run from there."""
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))

  def load(name):
    import importlib

    # Scripts are named like rooms of gft_jax: only here are they modules.
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)

  return load


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_every_recipe_traces_its_training_steps(path, scripts):
  """Shapes only: nothing is allocated, whatever the size of the model."""
  config = scripts('command').load_recipe(str(path), []).config
  architecture = config.model.architecture
  if config.model.path or path.stem == 'smollm2_gsm8k':
    architecture = presets.SMOLLM2_135M
  if not architecture.vocab_size:
    architecture = config_lib.override(architecture, 'vocab_size=23')
  model = Transformer(architecture, remat=config.model.remat)
  params = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 1), int), jnp.ones(1, int)
  )['params']
  for stage in config.stages:
    settings = config_lib.for_stage(config, stage)
    objective = objectives.choose(stage.objective, settings.group)
    step = train_step.make_train_step(
      model,
      objective,
      settings.loss,
      temperature=settings.sampler.temperature,
      mini_batches=settings.optimizer.mini_batches,
      micro_batches=settings.optimizer.micro_batches,
    )
    state = jax.eval_shape(
      lambda p, s=settings: train_step.create_state(
        model, p, make_optimizer(s.optimizer, 10)
      ),
      params,
    )
    _, metrics, _ = jax.eval_shape(step, state, batch_shapes(settings))
    assert metrics['loss'].total.shape == ()
  assert (path.read_text().split('"""')[1]).count('Command:') == 1


def batch_shapes(settings):
  b, g = settings.data.batch_size, settings.group.size
  p, t = settings.data.max_prompt, settings.data.max_response

  def of(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)

  return batch_lib.GroupBatch(
    prompts=batch_lib.Prompts(of(b, p), of(b), of(b)),
    responses=batch_lib.Responses(
      of(b, g, t), of(b, g), of(b, g, t, dtype=jnp.float32)
    ),
    rewards=of(b, g, dtype=jnp.float32),
    origin=of(b, g),
    member_mask=of(b, g, dtype=bool),
  )


def test_help_lists_every_setting_with_its_meaning(scripts, capsys):
  with pytest.raises(SystemExit) as caught:
    scripts('train').main(['--help'])
  assert caught.value.code == 0
  shown = ' '.join(capsys.readouterr().out.split())
  for name, _, _, meaning in config_lib.fields_with_meaning():
    assert name in shown and ' '.join(meaning.split()) in shown


QUICKSTART = str(ROOT / 'experiments/configs/quickstart.py')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config', 'quikstart.py'], 'quikstart.py: no such file'),
    (['--config', QUICKSTART, '--set', 'los.tau=1'], 'did you mean loss?'),
    (['--config', QUICKSTART, '--set', 'loss.tau=x'], 'not of type float'),
    (['--config', QUICKSTART, '--set', 'data.path=no.jsonl'], 'no.jsonl'),
    (['--config', QUICKSTART, '--set', 'model.path=/no'], '/no'),
    (
      ['--config', QUICKSTART, '--set', 'mesh.data=3'],
      'data.batch_size=64 is not a multiple of 3',
    ),
  ],
)
def test_a_mistake_is_one_line_and_code_2_and_writes_nothing(
  scripts, tmp_path, capsys, arguments, message
):
  workdir = tmp_path / 'run'
  code = scripts('train').main([*arguments, '--workdir', str(workdir)])
  captured = capsys.readouterr()
  lines = [l for l in captured.err.splitlines() if l.startswith('error: ')]
  assert code == 2 and len(lines) == 1 and message in lines[0]
  assert 'Traceback' not in captured.err
  assert not workdir.exists()


def test_evaluate_and_export_a_stage(scripts, whole, tmp_path, capsys):
  workdir, results = whole
  out = tmp_path / 'evaluation'
  arguments = ['--workdir', str(workdir), '--stage', 'gft', '--out', str(out)]
  assert scripts('evaluate').main(arguments) == 0
  assert 'test/avg@2' in capsys.readouterr().out
  metrics = json.loads((out / 'evaluation.json').read_text())
  assert metrics['eval/test/avg@2'] == results['gft']['eval/test/avg@2']
  assert metrics['eval/kl_to_base'] == results['gft']['eval/kl_to_base']

  folder = tmp_path / 'exported'
  arguments = ['--workdir', str(workdir), '--stage', 'gft']
  assert scripts('export').main([*arguments, '--out', str(folder)]) == 0
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  encoded = tokenizer('7+8-3:', return_tensors='pt', add_special_tokens=False)
  with torch.no_grad():
    logits = model(encoded['input_ids']).logits[0, -1].log_softmax(-1)

  from gft_jax import train

  policy = train.load_policy(
    config_lib.from_dict(
      config_lib.Config, json.loads((workdir / 'config.json').read_text())
    )
  )
  params, _ = train.result_of(policy, workdir, 'gft')
  tokens = jnp.asarray(encoded['input_ids'].numpy())
  length = jnp.array([tokens.shape[1]])
  variables = {'params': params}
  prefix = policy.model.apply(variables, tokens, length, method='prefill')
  head = policy.model.apply(variables, method='head')
  ours = jax.nn.log_softmax(prefix.hidden[0] @ head)
  assert abs(logits.numpy() - ours).max() < 2e-4


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('export', ['--stage', 'gtf', '--out', 'x'], 'did you mean gft?'),
    ('evaluate', ['--stage', 'gtf'], 'did you mean gft?'),
  ],
)
def test_an_unknown_stage_is_named(
  scripts, whole, capsys, name, arguments, message
):
  assert scripts(name).main(['--workdir', str(whole[0]), *arguments]) == 2
  assert message in capsys.readouterr().err


def test_not_a_run(scripts, tmp_path, capsys):
  arguments = ['--workdir', str(tmp_path), '--stage', 'a', '--out', 'x']
  assert scripts('export').main(arguments) == 2
  assert 'not a run' in capsys.readouterr().err


def test_the_readme_prints_two_commands_and_its_example_runs(capsys):
  text = (ROOT / 'README.md').read_text()
  assert len(re.findall('^python3 -m venv ', text, re.M)) == 2
  (example,) = re.findall('```python\n(.*?)```', text, re.S)
  # It leaves rank promotion at its default, as a user's session does.
  with jax.numpy_rank_promotion('allow'):
    exec(example, {})
  single, spread = capsys.readouterr().out.split()
  assert float(single) == pytest.approx(float(spread), rel=1e-5)


def test_the_tree_in_the_readme_is_the_tree():
  text = (ROOT / 'README.md').read_text()
  for path in (ROOT / 'gft_jax').rglob('*.py'):
    room = path.relative_to(ROOT / 'gft_jax').parts[0]
    if not room.startswith('__'):
      assert re.search(rf'^  {re.escape(room)}[ /]', text, re.M), room


@pytest.mark.slow
def test_what_held_in_every_run_of_the_study_holds_in_the_quickstart(scripts):
  """Reads what the README's first command left; .ci/run runs it before."""
  workdir = ROOT / 'runs' / 'quickstart'
  if not (workdir / 'report' / 'index.html').exists():
    pytest.skip(f'no finished run at {workdir}')
  last = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    record = json.loads(line)
    if 'eval/kl_to_base' in record:
      last[record['stage']] = record
  claims = scripts('command').load_recipe(QUICKSTART, []).claims(last)
  assert len(claims) == 3 and all(claims.values()), claims


@pytest.mark.slow
def test_gft_on_real_weights_and_real_data(tmp_path, shared_or_generated):
  """SmolLM2-135M on GSM8K: three steps, export, transformers generates."""
  folder = pathlib.Path.home() / '.cache' / 'gft_jax' / 'SmolLM2-135M-Instruct'
  workdir, exported = tmp_path / 'run', tmp_path / 'exported'
  call('fetch_smollm2.py', str(folder))
  call(
    'train.py',
    *('--config', 'experiments/configs/smollm2_gsm8k.py'),
    *('--workdir', str(workdir)),
    *('--set', f'model.path={folder}', f'data.path={shared_or_generated}'),
  )
  records = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  steps = [r for r in records if 'train/loss' in r]
  before, after = [r for r in records if 'eval/expert_logp' in r]
  assert len(steps) == 3
  for record in steps:
    assert record['train/response_length_self'] >= 1
    assert record['train/reward_expert'] > 0.9
  assert any(record['train/grad_norm'] > 0 for record in steps)
  assert after['eval/expert_logp'] > before['eval/expert_logp']

  stage = ('--workdir', str(workdir), '--stage', 'gft')
  call('export.py', *stage, '--out', str(exported))
  transformers = pytest.importorskip('transformers')
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  model = transformers.AutoModelForCausalLM.from_pretrained(exported)
  encoded = tokenizer('2 + 2 =', return_tensors='pt')
  written = model.generate(**encoded, max_new_tokens=8, do_sample=False)
  assert written.shape[1] > encoded['input_ids'].shape[1]


@pytest.fixture
def shared_or_generated(tmp_path):
  """GSM8K where it lies beside the checkout, else Reasoning Gym's likeness."""
  path = ROOT.parent / 'shared' / 'data' / 'gsm8k' / 'train.parquet'
  if path.exists():
    return path
  out = tmp_path / 'gsm_symbolic.jsonl'
  call(
    'prepare_data.py',
    *('--reasoning-gym', 'gsm_symbolic', '--rows', '512', '--out', str(out)),
  )
  return out


def call(script, *arguments):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  subprocess.run(
    [sys.executable, f'experiments/{script}', *arguments],
    cwd=ROOT,
    env=environment,
    check=True,
  )
